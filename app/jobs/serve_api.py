"""HTTP interface of `serve`: captions as JSON or as server-sent events, and one page.

Imports no Ray: the caller gives the functions that generate captions.
"""

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from data_pipeline.svg.canonical import canonicalise
from data_pipeline.svg.errors import SVGRefused

MAX_REQUEST_BYTES = 5_000_000
"""Size limit of a request's body; a drawing has at most 4,000,000 bytes of it."""

_PAGE_FILE = Path(__file__).with_name("serve_page.html")


class CaptionService(Protocol):
    """Model behind the interface."""

    model: str
    max_prompt_tokens: int | None
    """Limit of a prompt (tokens); None: a longer one is cut."""

    def count_prompt_tokens(self, svg: str) -> int:
        """Return the number of tokens of the prompt for a canonical drawing."""

    async def caption(self, svg: str) -> str:
        """Return the caption of a canonical drawing."""

    def stream(self, svg: str) -> AsyncIterator[str]:
        """Yield the caption of a canonical drawing in pieces, while it is generated."""


class CaptionRequest(BaseModel):
    """A drawing to caption."""

    model_config = ConfigDict(extra="forbid")

    svg: str = Field(description="SVG document")
    id: str | None = Field(None, description="name of the drawing, which the answer repeats")


class CaptionAnswer(BaseModel):
    """The caption of one drawing."""

    id: str = Field(description="the given id, or a hash of the canonical drawing")
    caption: str
    model: str = Field(description="model that generated the caption")


class Refusal(BaseModel):
    """Reason why a request has no caption."""

    reason: str = Field(description="short stable name, such as not_xml or too_long")
    message: str = Field(description="sentence with the value and the limit")


class RefusalAnswer(BaseModel):
    """Body of an answer with a status from 400 to 499."""

    detail: Refusal


@dataclass(frozen=True)
class _Drawing:
    id: str
    svg: str
    """Canonical form."""


def build_api(service: CaptionService) -> FastAPI:
    """Return the application: `/caption`, `/caption/stream`, `/healthz`, `/docs`, and a page."""
    summary = "Captions of SVG drawings"
    api = FastAPI(title="SVGScribe", summary=summary, docs_url=None, redoc_url=None)
    api.add_exception_handler(StarletteHTTPException, _answer_error)
    refusals: dict[int | str, Any] = {
        status: {"model": RefusalAnswer, "description": text} for status, text in _REFUSALS.items()
    }
    page, page_headers = _load_page()

    @api.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return Response(page, media_type="text/html", headers=page_headers)

    @api.get("/docs", include_in_schema=False)
    async def show_interface() -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json", title="SVGScribe", swagger_favicon_url="data:,"
        )

    @api.get("/healthz")
    async def check_health() -> dict[str, str]:
        """Return the model's name if the service can answer."""
        return {"status": "ok", "model": service.model}

    @api.post("/caption", responses=refusals, openapi_extra=_REQUEST_BODY)
    async def caption(request: Request) -> CaptionAnswer:
        """Return the caption of the drawing in the body."""
        drawing = await _read_drawing(request, service)
        text = await service.caption(drawing.svg)
        return CaptionAnswer(id=drawing.id, caption=text, model=service.model)

    @api.post(
        "/caption/stream",
        responses={**refusals, 200: _EVENTS},
        response_class=StreamingResponse,
        openapi_extra=_REQUEST_BODY,
    )
    async def stream_caption(request: Request) -> StreamingResponse:
        """Return the caption as server-sent events, each piece of text when it is generated."""
        drawing = await _read_drawing(request, service)
        events = _write_events(drawing, service)
        return StreamingResponse(events, media_type="text/event-stream", headers=_NO_CACHE)

    return api


async def _write_events(drawing: _Drawing, service: CaptionService) -> AsyncIterator[str]:
    """Yield one event for each piece of text, and the whole answer as the event `done`."""
    pieces = []
    async for piece in service.stream(drawing.svg):
        pieces.append(piece)
        yield f"data: {json.dumps({'text': piece})}\n\n"
    text = "".join(pieces).strip()
    answer = CaptionAnswer(id=drawing.id, caption=text, model=service.model)
    yield f"event: done\ndata: {answer.model_dump_json()}\n\n"


async def _read_drawing(request: Request, service: CaptionService) -> _Drawing:
    """Return the drawing of a request in canonical form.

    Raises HTTPException with a status from 400 to 499 if there is none that can be captioned.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "image/svg+xml"):
        message = f"content-type {kind!r}: send application/json or image/svg+xml"
        raise _refuse(415, "unsupported_type", message)
    body = await _read_body(request)

    # JSON
    name: str | None = None
    content: str | bytes = body
    if kind == "application/json":
        try:
            given = CaptionRequest.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the body"
            is_unknown = first["type"] == "extra_forbidden"
            allowed = ", ".join(CaptionRequest.model_fields)
            fault = f"unknown key, expected {allowed}" if is_unknown else first["msg"]
            raise _refuse(422, "bad_request", f"{place}: {fault}") from None
        name, content = given.id, given.svg

    # canonical form, in another thread: a large drawing takes seconds
    try:
        svg = await run_in_threadpool(canonicalise, content)
    except SVGRefused as error:
        status = 413 if error.reason == "too_large" else 422
        raise _refuse(status, error.reason, error.detail) from None

    # length
    limit = service.max_prompt_tokens
    num_tokens = await run_in_threadpool(service.count_prompt_tokens, svg)
    if limit is not None and num_tokens > limit:
        message = (
            f"the prompt has {num_tokens:,} tokens, more than the {limit:,} that the model was "
            "trained with: send a simpler drawing"
        )
        raise _refuse(422, "too_long", message)
    return _Drawing(name or hashlib.sha256(svg.encode()).hexdigest()[:16], svg)


async def _read_body(request: Request) -> bytes:
    """Return the body; raise HTTPException as soon as it is known to be too large."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > MAX_REQUEST_BYTES:
        raise _refuse_size(f"{int(announced):,}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_REQUEST_BYTES:
            raise _refuse_size(f"{len(body):,} or more")
    return bytes(body)


def _refuse_size(size: str) -> HTTPException:
    message = f"the request has {size} bytes, more than {MAX_REQUEST_BYTES:,}: simplify the drawing"
    return _refuse(413, "too_large", message)


def _refuse(status: int, reason: str, message: str) -> HTTPException:
    return HTTPException(status, Refusal(reason=reason, message=message).model_dump())


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    """Return the answer of an HTTPException, also of one that the framework raised."""
    assert isinstance(error, StarletteHTTPException)
    detail: Any = error.detail
    if isinstance(detail, str):
        reason = detail.lower().replace(" ", "_")
        message = f"{request.method} {request.url.path}: {detail.lower()}, see GET /docs"
        detail = Refusal(reason=reason, message=message).model_dump()
    return JSONResponse({"detail": detail}, error.status_code, error.headers)


def _load_page() -> tuple[str, dict[str, str]]:
    """Return the page and its headers: it may only run its own script, and load only this service.

    The user's drawing is a `data:` image, in which browsers run and load nothing.
    """
    page = _PAGE_FILE.read_text()
    hashes = {
        tag: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for tag, text in re.findall(r"<(script|style)>(.*?)</\1>", page, re.DOTALL)
    }
    policy = (
        f"default-src 'none'; img-src data:; connect-src 'self'; script-src 'sha256-"
        f"{hashes['script']}'; style-src 'sha256-{hashes['style']}'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return page, headers


_NO_CACHE = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_EVENTS = {
    "description": "Events with a JSON object each: `{text}` for a piece; `done` has the answer",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
_REFUSALS = {
    413: "The request or the drawing is too large",
    415: "The body is neither JSON nor SVG",
    422: "The drawing is refused, or its prompt is too long",
}
_REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": CaptionRequest.model_json_schema()},
            "image/svg+xml": {"schema": {"type": "string"}},
        },
    }
}
