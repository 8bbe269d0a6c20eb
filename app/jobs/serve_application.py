"""Captions over HTTP: one model in a Ray Serve application."""

import asyncio
import contextlib
import logging
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from app.errors import UserError
from app.gemma.base_model import load_model_config
from app.jobs.cluster import connect_ray, is_ray_private
from app.jobs.open_captioner import open_engine, require_engine
from app.jobs.serve_api import build_api
from app.jobs.trained_model import TrainedModel

MAX_BATCH_SIZE = 64
"""Requests that wait together; the captioner divides them by its token budget."""
MAX_ONGOING_REQUESTS = 256
"""Requests that the replica reads and captions at a time; further ones wait outside it."""
MAX_QUEUED_REQUESTS = 1024
"""Requests that wait outside the replica; Ray Serve answers 503 to further ones."""

_APPLICATION = "svgscribe"
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}
"""With the default arenas of glibc the replica grew by 158 MiB in four rounds of 48 clients."""
_LOGGING = {"log_level": "ERROR", "enable_access_log": False}
_CONTROLLER_LOGGING = {"log_level": "CRITICAL"}
"""At a lower level Serve's controller repeats the traceback of a model that cannot be loaded."""


class CaptionServer:
    """Replica with the model, loaded once.

    One thread runs the model. Batches of whole captions take turns with the tokens of a stream.
    """

    def __init__(self, model: TrainedModel) -> None:
        self.model = describe_model(model)
        self._captioner = open_engine(model.config, model.adapter)
        is_cut = model.config.data.too_long == "truncate"
        self.max_prompt_tokens = None if is_cut else self._captioner.max_prompt_tokens
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._stream_turn = asyncio.Lock()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self)

    def count_prompt_tokens(self, svg: str) -> int:
        """Return the number of tokens of the prompt for a canonical drawing."""
        return self._captioner.count_prompt_tokens(svg)

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=0.01)
    async def caption(self, svgs: list[str]) -> list[str]:
        """Return the captions of the drawings that wait at this moment."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._captioner.caption, svgs)

    async def stream(self, svg: str) -> AsyncIterator[str]:
        """Yield the caption of a drawing in pieces. Streams take turns, in their order."""
        loop = asyncio.get_running_loop()
        async with self._stream_turn:
            pieces = self._captioner.stream(svg)
            while piece := await loop.run_in_executor(self._thread, next, pieces, ""):
                yield piece


def describe_model(model: TrainedModel) -> str:
    """Return the model's name without the path of this machine and without credentials."""
    name = model.name.partition("?")[0].rstrip("/").rpartition("/")[2]
    return f"{name}, step {model.step}"


def serve_model(model: TrainedModel, *, host: str, port: int) -> None:
    """Serve captions of the model until a signal raises KeyboardInterrupt.

    Raises UserError if the model cannot be loaded, or if the cluster at RAY_ADDRESS serves already:
    its Ray Serve has one address, and would replace an application of the same name.
    """
    if is_ray_private():
        load_model_config(model.config.model)  # raises UserError before Ray starts
    require_engine(model.config, model.adapter)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with connect_ray() as cluster:
        running = serve.status()
        if running.proxies or running.applications:
            names = ", ".join(running.applications) or "none"
            raise UserError(
                f"Ray Serve already runs on the cluster at {cluster.address} (applications: "
                f"{names}): end it with `serve shutdown`, or unset RAY_ADDRESS to serve from a Ray "
                "of this command's own"
            )
        options: dict[str, Any] = {
            "num_cpus": min(model.config.scaling.cpus_per_worker, os.cpu_count() or 1),
            "runtime_env": {"env_vars": _ENVIRONMENT},
        }
        if ray.cluster_resources().get("GPU", 0) >= 1:
            options["num_gpus"] = 1
        deployment = serve.deployment(
            name=_APPLICATION,
            ray_actor_options=options,
            max_ongoing_requests=MAX_ONGOING_REQUESTS,
            max_queued_requests=MAX_QUEUED_REQUESTS,
            max_constructor_retry_count=1,
            logging_config=_LOGGING,
        )(serve.ingress()(CaptionServer))
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config=_CONTROLLER_LOGGING,
        )
        try:
            with _name_load_error():
                serve.run(deployment.bind(model), name=_APPLICATION)
            print(f"serving {describe_model(model)} at http://{host}:{port}", flush=True)
            while True:
                signal.pause()
        finally:
            if not cluster.private:
                serve.shutdown()


@contextlib.contextmanager
def _name_load_error() -> Iterator[None]:
    """Raise the UserError of the replica, which Ray Serve keeps as the text of a traceback."""
    try:
        yield
    except RuntimeError:
        application = serve.status().applications[_APPLICATION]
        text = "\n".join(each.message for each in application.deployments.values())
        found = re.findall(r"(?:UserError|DataError): (.+)", text)
        if not found:
            raise RuntimeError(text) from None
        raise UserError(found[-1]) from None
