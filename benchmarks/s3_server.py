"""An S3 server on loopback (moto), in a process of its own, that lists the requests it answered."""

import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_ADDRESS = re.compile(r"Running on http://127\.0\.0\.1:(\d+)")
_REQUEST = re.compile(r'"([A-Z]+ \S+) HTTP/')
_START_SECONDS = 120.0


@dataclass(frozen=True)
class S3Server:
    """A running server, which accepts any credentials."""

    port: int
    log: Path

    def make_uri(self, path: str) -> str:
        """Return the URI of `bucket/key` on this server."""
        return f"s3://key:secret@{path}?scheme=http&endpoint_override=127.0.0.1:{self.port}"

    def put(self, path: str, content: bytes = b"") -> None:
        """Store an object; without a key, create the bucket."""
        url = f"http://127.0.0.1:{self.port}/{path}"
        headers = {"Content-Type": "application/octet-stream"}  # the default is read as a form
        request = urllib.request.Request(url, content, headers, method="PUT")
        urllib.request.urlopen(request, timeout=60).close()

    def list_requests(self) -> list[str]:
        """Return all requests so far, such as `GET /bucket/key`."""
        return _REQUEST.findall(self.log.read_text())


@contextmanager
def serve_s3(log: Path) -> Iterator[S3Server]:
    """Run a server on a free port until the context ends; it writes its requests to `log`."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not (found := _ADDRESS.search(log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"no S3 server after {_START_SECONDS} s"
            time.sleep(0.05)
        yield S3Server(int(found[1]), log)
    finally:
        process.terminate()
        process.wait()
