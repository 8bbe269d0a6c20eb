"""The service: answers and refusals of the interface, a load over Ray Serve, and the page."""

import asyncio
import json
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from fastapi.testclient import TestClient

from app.config import load_config
from app.evaluation.captioner import Captioner
from app.jobs.cluster import ConnectedRay
from app.jobs.open_captioner import open_captioner
from app.jobs.serve_api import MAX_REQUEST_BYTES, build_api
from benchmarks.serve import Server, find_free_port, run_server, send_round, write_model
from data_pipeline.svg import canonicalise
from tests.chromium import CHROMIUM, open_chromium
from tests.command_line import refuse_command
from tests.forked_workers import FORKED

CIRCLE = "<svg viewBox='0 0 24 24'><circle cx='8' cy='8' r='5' fill='#d22'/></svg>"
LONG = '<svg viewBox="0 0 9 9"><path d="M1 1' + "l1 1 2-1" * 3000 + '"/></svg>'
JSON, SVG = "application/json", "image/svg+xml"


class Service:
    """The captioner without Ray Serve."""

    model = "tiny"

    def __init__(self, captioner: Captioner) -> None:
        self.captioner = captioner
        self.max_prompt_tokens = captioner.max_prompt_tokens
        self.count_prompt_tokens = captioner.count_prompt_tokens

    async def caption(self, svg: str) -> str:
        return self.captioner.caption([svg])[0]

    async def stream(self, svg: str) -> AsyncIterator[str]:
        for piece in self.captioner.stream(svg):
            yield piece


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return open_captioner(load_config("demo", ["quantization.kind=none"]), None)


@pytest.fixture(scope="module")
def client(captioner: Captioner) -> Iterator[TestClient]:
    with TestClient(build_api(Service(captioner))) as made:
        yield made


def read_events(text: str) -> tuple[list[str], dict[str, str]]:
    """Return the pieces of a stream, and its answer."""
    *events, done = text.strip().split("\n\n")
    assert done.startswith("event: done\ndata: ")
    pieces = [json.loads(event.removeprefix("data: "))["text"] for event in events]
    return pieces, json.loads(done.partition("data: ")[2])


def test_the_answer_is_the_models_caption_of_the_canonical_drawing(
    client: TestClient, captioner: Captioner
) -> None:
    expected = captioner.caption([canonicalise(CIRCLE)])[0]
    given = client.post("/caption", json={"svg": CIRCLE, "id": "one"}).json()
    assert given == {"id": "one", "caption": expected, "model": "tiny"}

    raw = client.post("/caption", content=CIRCLE, headers={"Content-Type": f"{SVG}; charset=utf-8"})
    assert raw.json()["caption"] == expected
    respelled = CIRCLE.replace("'", '"').replace("<circle", "<title>x</title><circle")
    assert client.post("/caption", json={"svg": respelled}).json()["id"] == raw.json()["id"]


def test_the_pieces_of_a_stream_are_the_caption(client: TestClient) -> None:
    answer = client.post("/caption", json={"svg": CIRCLE}).json()
    streamed = client.post("/caption/stream", json={"svg": CIRCLE})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    pieces, done = read_events(streamed.text)
    assert done == answer
    assert len(pieces) > 3
    assert "".join(pieces) == answer["caption"]


@pytest.mark.parametrize("path", ["/caption", "/caption/stream"])
@pytest.mark.parametrize(
    ("kind", "body", "status", "reason"),
    [
        (JSON, b"{", 422, "bad_request"),
        (JSON, b'{"svg": 3}', 422, "bad_request"),
        (JSON, b'{"drawing": "<svg/>"}', 422, "bad_request"),
        (JSON, json.dumps({"svg": CIRCLE, "temperature": 1}).encode(), 422, "bad_request"),
        (JSON, json.dumps({"svg": "<svg"}).encode(), 422, "not_xml"),
        (SVG, b"", 422, "not_xml"),
        (SVG, b"<html/>", 422, "not_svg"),
        (SVG, b"\xff\xfe\xff", 422, "bad_encoding"),
        (SVG, b'<svg viewBox="0 0 9 9"><path d="M1e99 1h4v4z"/></svg>', 422, "bad_path"),
        (SVG, b"<svg><script>alert(1)</script></svg>", 422, "empty"),
        (SVG, LONG.encode(), 422, "too_long"),
        (SVG, b" " * 4_000_001, 413, "too_large"),
        (SVG, b" " * (MAX_REQUEST_BYTES + 1), 413, "too_large"),
        ("text/plain", CIRCLE.encode(), 415, "unsupported_type"),
        ("", CIRCLE.encode(), 415, "unsupported_type"),
    ],
)
def test_a_bad_request_has_a_status_and_a_reason(
    client: TestClient, path: str, kind: str, body: bytes, status: int, reason: str
) -> None:
    answer = client.post(path, content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["detail"]["reason"]) == (status, reason)
    assert answer.json()["detail"]["message"]


def test_an_unknown_key_is_named_with_the_known_ones(client: TestClient) -> None:
    answer = client.post("/caption", json={"svg": CIRCLE, "temperature": 1})
    message = answer.json()["detail"]["message"]
    assert message == "temperature: unknown key, expected svg, id"


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/captions", 404, "not_found"),
        ("POST", "/", 405, "method_not_allowed"),
        ("GET", "/caption", 405, "method_not_allowed"),
    ],
)
def test_a_wrong_address_is_answered_as_other_refusals_are(
    client: TestClient, method: str, path: str, status: int, reason: str
) -> None:
    answer = client.request(method, path)
    message = f"{method} {path}: {reason.replace('_', ' ')}, see GET /docs"
    assert answer.status_code == status
    assert answer.json() == {"detail": {"reason": reason, "message": message}}
    assert ("allow" in answer.headers) == (status == 405)


def test_a_too_long_prompt_is_named_with_its_length_and_the_limit(
    client: TestClient, captioner: Captioner
) -> None:
    answer = client.post("/caption", json={"svg": LONG})
    length = captioner.count_prompt_tokens(canonicalise(LONG))
    assert f"{length:,} tokens, more than the 768" in answer.json()["detail"]["message"]


def test_the_interface_describes_itself(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/caption", "/caption/stream", "/healthz"}
    for path in ("/caption", "/caption/stream"):
        assert set(paths[path]["post"]["requestBody"]["content"]) == {JSON, SVG}
        assert set(paths[path]["post"]["responses"]) == {"200", "413", "415", "422"}
    documents = client.get("/docs").text
    assert {url.partition("/npm/")[0] for url in re.findall(r"https?://[^\"']+", documents)} == {
        "https://cdn.jsdelivr.net"
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    with run_server(str(folder), find_free_port(), FORKED) as running:
        yield running


def test_no_good_request_fails_among_bad_ones(server: Server) -> None:
    outcome = asyncio.run(send_round(server.url, num_clients=7))
    assert outcome.errors == []
    assert outcome.list_wrong() == []
    assert outcome.count_good() == 3 * 7
    assert outcome.statuses["20 MB", 413] == outcome.statuses["20 MB without length", 413] == 1


def connect_to(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def send_head(connection: socket.socket, path: str, kind: str, length: int) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: {kind}\r\n"
    connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())


def test_a_body_of_20_mb_is_refused_before_it_is_sent(server: Server) -> None:
    with connect_to(server) as connection:
        send_head(connection, "/caption", SVG, 20_000_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_client_that_leaves_does_not_stop_the_others(server: Server) -> None:
    body = json.dumps({"svg": CIRCLE}).encode()
    for _ in range(4):
        with connect_to(server) as connection:
            send_head(connection, "/caption/stream", JSON, len(body))
            connection.sendall(body)
            assert connection.recv(12) == b"HTTP/1.1 200"
    outcome = asyncio.run(send_round(server.url, num_clients=1))
    assert outcome.list_wrong() == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)], ids=["desktop", "phone"])
def test_the_page_shows_a_drawing_and_its_caption(server: Server, width: int, height: int) -> None:
    hostile = (
        f"{CIRCLE[:-6]}<image href='{server.url}/asked'/><script>document.title=1</script></svg>"
    )
    with open_chromium() as page:
        page.open(server.url, width, height)
        page.run(f"source.value = {json.dumps(hostile)}; describe()")
        page.wait("document.getElementById('status').textContent === 'Done.'")
        assert page.run("caption.textContent") != ""
        assert page.run("image.naturalWidth") > 0
        assert page.overflow() == 0
        assert {url.removeprefix(server.url) for url in page.requests} == {
            "/", "/healthz", "/caption/stream",
        }  # fmt: skip
        assert page.run("document.title") == "SVGScribe"
        assert page.messages == []

        page.run("source.value = '<svg'; describe()")
        page.wait("document.getElementById('status').className === 'bad'")
        assert "(not_xml)" in page.run("document.getElementById('status').textContent")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Serve warns about its own code
def test_a_mistake_is_one_sentence_before_ray_starts(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")
    command = ["serve", "--model", server.model, "--port"]
    taken = refuse_command(*command, str(server.port))
    assert taken.startswith(f"svgscribe: --port {server.port} of 127.0.0.1 cannot be used")
    absent = refuse_command(*command, str(find_free_port()), "model.name=/absent")
    assert absent.startswith("svgscribe: model.name='/absent' is neither")


def test_sigterm_ends_the_service_and_all_its_processes(server: Server) -> None:
    processes = psutil.Process(server.process.pid).children(recursive=True)
    assert len(processes) > 3
    server.process.terminate()
    assert server.process.wait(timeout=60) == 143
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []
    socket.create_server(("127.0.0.1", server.port)).close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_cluster_names_a_model_that_it_lacks_and_serves_once(
    ray_local: ConnectedRay, tmp_path: Path
) -> None:
    from ray import serve as ray_serve  # warns about its own use of pydantic

    write_model(tmp_path)

    def serve(*overrides: str) -> str:
        """Return the last line of the command, which joins the cluster of RAY_ADDRESS."""
        command = ["serve", "--model", str(tmp_path), "--port", str(find_free_port()), *overrides]
        done = subprocess.run(
            [sys.executable, "-m", "app", *command], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]

    absent = serve("model.name=/absent")
    assert absent.startswith("svgscribe: model.name='/absent' is neither")
    ray_serve.start(http_options={"port": find_free_port()})
    try:
        assert serve().startswith("svgscribe: Ray Serve already runs on the cluster")
    finally:
        ray_serve.shutdown()
