"""Load `serve` with 64 clients on loopback, bad and 20 MB requests among them.

    python -m benchmarks.serve --json PATH

The model is the tiny base model with a random adapter, in one replica.
"""

import argparse
import asyncio
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import psutil
import torch

from app.config import load_config
from app.gemma.config import ModelConfig
from app.gemma.load import add_lora, load_base_model
from app.jobs.trained_model import save_config
from app.storage import write_json
from data_pipeline.sources.scenes import generate_scenes

BIG = 20_000_000
"""Bytes of the bodies that must be refused."""
GOOD = ("JSON", "SVG", "stream")
BAD = {
    "malformed SVG": 422,
    "malformed JSON": 422,
    "empty drawing": 422,
    "too long prompt": 422,
    "wrong type": 415,
    "20 MB": 413,
    "20 MB without length": 413,
}
"""Bad requests, and the status of their answers."""

Body: TypeAlias = bytes | io.BytesIO | AsyncIterator[bytes]


@dataclass
class Outcome:
    """Answers of all clients."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Number of answers by kind of request and status; status 0: no answer."""
    seconds: list[float] = field(default_factory=list)
    """Seconds of each good request."""
    errors: list[str] = field(default_factory=list)

    def count_good(self) -> int:
        """Return the number of good requests."""
        return sum(num for (kind, _), num in self.statuses.items() if kind not in BAD)

    def list_wrong(self) -> list[str]:
        """Return each wrong answer with its number: a good request must give 200."""
        return [
            f"{kind}: {status} ({num} times)"
            for (kind, status), num in self.statuses.items()
            if status != BAD.get(kind, 200)
        ]


@dataclass
class Memory:
    """Resident bytes of the proxy and the replica, sampled during the load."""

    processes: list[psutil.Process]
    samples: list[int] = field(default_factory=list)

    def sample(self) -> int:
        """Add and return the present sum."""
        self.samples.append(sum(process.memory_info().rss for process in self.processes))
        return self.samples[-1]


def main() -> None:
    """Run the load and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        with run_server(folder, port=find_free_port()) as server:
            figures = measure_load(server, arguments.clients, arguments.rounds)
    text = json.dumps({"figures": figures}, indent=2)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(text + "\n")
    print(text)


def measure_load(server: "Server", num_clients: int, num_rounds: int) -> dict[str, Any]:
    """Return the figures of some rounds, after one that fills the caches of all libraries."""
    memory = Memory(server.find_processes())
    asyncio.run(send_round(server.url, num_clients))
    after_rounds = [memory.sample()]

    outcome = Outcome()
    started = time.monotonic()
    for number in range(num_rounds):
        asyncio.run(send_round(server.url, num_clients, outcome, memory))
        after_rounds.append(memory.sample())
        print(f"round {number + 1}/{num_rounds}: {outcome.count_good()} captions", file=sys.stderr)
    seconds = time.monotonic() - started

    good = sorted(outcome.seconds)
    return {
        "num_clients": num_clients,
        "num_good": outcome.count_good(),
        "num_bad": outcome.statuses.total() - outcome.count_good(),
        "wrong_answers": outcome.list_wrong(),
        "errors": outcome.errors[:10],
        "captions_per_second": outcome.count_good() / seconds,
        "seconds_median": statistics.median(good),
        "seconds_p99": good[len(good) * 99 // 100],
        "memory_after_rounds_bytes": after_rounds,
        "memory_peak_bytes": max(memory.samples),
    }


async def send_round(
    url: str, num_clients: int, outcome: Outcome | None = None, memory: Memory | None = None
) -> Outcome:
    """Let all clients send at the same time: each its good requests and one bad one."""
    outcome = outcome or Outcome()
    svgs = [record.svg for record in generate_scenes(num_clients, seed=1)]
    timeout = aiohttp.ClientTimeout(total=300)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session:

        async def run_client(number: int) -> None:
            for kind in (*GOOD, list(BAD)[number % len(BAD)]):
                await send_one(session, kind, svgs[number], outcome)

        clients = asyncio.gather(*map(run_client, range(num_clients)))
        while memory is not None and not clients.done():
            memory.sample()
            await asyncio.wait([clients], timeout=0.2)
        await clients
    return outcome


async def send_one(session: aiohttp.ClientSession, kind: str, svg: str, outcome: Outcome) -> None:
    """Send one request and count its answer."""
    path, content_type, body = make_request(kind, svg)
    started = time.monotonic()
    try:
        headers = {"Content-Type": content_type}
        async with session.post(path, data=body, headers=headers) as answer:
            text, status = await answer.text(), answer.status
    except (aiohttp.ClientError, TimeoutError) as error:
        outcome.errors.append(f"{kind}: {type(error).__name__}: {error}")
        text, status = "", 0
    if kind == "stream" and "event: done" not in text:
        status = 0
    outcome.statuses[kind, status] += 1
    if kind not in BAD:
        outcome.seconds.append(time.monotonic() - started)


def make_request(kind: str, svg: str) -> tuple[str, str, Body]:
    """Return the path, the content type and the body of one request."""
    as_json = json.dumps({"svg": svg}).encode()
    long_path = '<svg viewBox="0 0 9 9"><path d="M1 1' + "l1 1 2-1" * 3000 + '"/></svg>'
    requests: dict[str, tuple[str, str, Body]] = {
        "JSON": ("/caption", "application/json", as_json),
        "SVG": ("/caption", "image/svg+xml", svg.encode()),
        "stream": ("/caption/stream", "application/json", as_json),
        "malformed SVG": ("/caption", "image/svg+xml", svg[:-8].encode()),
        "malformed JSON": ("/caption/stream", "application/json", as_json[:-1]),
        "empty drawing": ("/caption", "image/svg+xml", b"<svg><script>stop()</script></svg>"),
        "too long prompt": ("/caption", "image/svg+xml", long_path.encode()),
        "wrong type": ("/caption", "text/plain", svg.encode()),
        "20 MB": ("/caption", "image/svg+xml", io.BytesIO(bytes(BIG))),
        "20 MB without length": ("/caption", "image/svg+xml", send_chunks()),
    }
    return requests[kind]


async def send_chunks() -> AsyncIterator[bytes]:
    """Yield BIG bytes in chunks, so that the request has no Content-Length."""
    for _ in range(BIG // 100_000):
        yield bytes(100_000)


@dataclass(frozen=True)
class Server:
    """A running `serve`."""

    model: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Return the address of the page."""
        return f"http://127.0.0.1:{self.port}"

    def find_processes(self) -> list[psutil.Process]:
        """Return the HTTP proxy and the replica."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        titles = {child: " ".join(child.cmdline()) for child in children}
        found = [
            child for child, title in titles.items() if "ProxyActor" in title or "Replica" in title
        ]
        assert len(found) == 2, titles
        return found


@contextmanager
def run_server(
    model: str, port: int, start: Sequence[str] = (sys.executable, "-m")
) -> Iterator[Server]:
    """Run `python -m app serve` with its own Ray until the context ends; stop it by SIGTERM.

    `start` is the beginning of the command, before `app`.
    """
    command = [*start, "app", "serve", "--model", model, "--port", str(port)]
    environment = {**os.environ, "RAY_ADDRESS": ""}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # printed when the service answers, or the end
        assert line.startswith(b"serving "), line
        yield Server(model, port, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def write_model(folder: Path) -> None:
    """Write an adapter with random weights, whose captions reach the limit of their length."""
    config = load_config("demo", ["lora.rank=4", "evaluate.max_new_tokens=24"])
    base_model = load_base_model(
        ModelConfig(name="tiny"),
        config.quantization,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    model = add_lora(base_model, config.lora, seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1.0)
    model.save_pretrained(str(folder))
    save_config(folder, config)
    write_json(str(folder / "state.json"), {"state": {"step": 0}})


def find_free_port() -> int:
    """Return a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
