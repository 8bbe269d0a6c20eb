"""A headless Chromium, driven by the DevTools protocol; needs `chromium` on the PATH."""

import base64
import itertools
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium")
_SECONDS = 60.0
_BAD_TEXTS = """
(() => {
    const boxes = [...document.querySelectorAll('svg text')]
        .map(text => [text.textContent, text.getBoundingClientRect()])
        .filter(([text, box]) => text && box.width);
    const touch = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
        && a.top < b.bottom - 1 && b.top < a.bottom - 1;
    return boxes
        .filter(([_, a], i) => a.left < 0 || a.top < 0 || a.right > innerWidth
            || a.bottom > innerHeight || boxes.some(([_, b], j) => i !== j && touch(a, b)))
        .map(([text]) => text);
})()
"""


class CommandRefused(Exception):
    """Chromium answers a command with an error."""


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._ids = socket, itertools.count(1)
        self.requests: list[str] = []
        """URLs that the tab asked for, without data: URLs."""
        self.messages: list[str] = []
        """Errors and warnings of the console, violations of the content security policy too."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=_SECONDS))
            if message.get("id") == number:
                if "error" in message:
                    raise CommandRefused(message)
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message["method"] == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith("data:"):
                self.requests.append(url)
        elif message["method"] == "Log.entryAdded":
            self.messages.append(params["entry"]["text"])
        elif message["method"] == "Runtime.exceptionThrown":
            self.messages.append(str(params["exceptionDetails"]))

    def open(self, url: str, width: int, height: int) -> None:
        """Show a page in a window of this size."""
        self.resize(width, height)
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def resize(self, width: int, height: int) -> None:
        """Change the size of the window; a narrow one is a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def run(self, script: str, **context: Any) -> Any:
        """Return the value of an expression, or of the promise that it returns."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, **context
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def run_in_frame(self, script: str) -> Any:
        """Return the value of an expression in the frame of the page, also a sandboxed one.

        None: there is no frame, or the page has just replaced it.
        """
        children = self.call("Page.getFrameTree")["frameTree"].get("childFrames")
        if not children:
            return None
        try:
            world = self.call("Page.createIsolatedWorld", frameId=children[0]["frame"]["id"])
            return self.run(script, contextId=world["executionContextId"])
        except CommandRefused:
            return None

    def find_bad_texts(self) -> list[str]:
        """Return the texts of all SVG that leave the window or overlap another text."""
        return list(self.run(_BAD_TEXTS))

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        self._wait(self.run, script)

    def wait_in_frame(self, script: str) -> None:
        """Wait until an expression is true in the only frame of the page."""
        self._wait(self.run_in_frame, script)

    def _wait(self, run: Callable[[str], Any], script: str) -> None:
        deadline = time.monotonic() + _SECONDS
        while not run(script):
            assert time.monotonic() < deadline, script

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        return int(self.run("document.documentElement.scrollWidth - innerWidth"))

    def screenshot(self, file: Path) -> None:
        """Write the whole page as PNG or WebP."""
        kind = file.suffix.removeprefix(".")
        taken = self.call("Page.captureScreenshot", format=kind, captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def open_chromium() -> Iterator[Page]:
    """Run Chromium until the context ends."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [
            str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu",
            "--disable-dev-shm-usage", "--remote-debugging-port=0", "--no-first-run",
            "--disable-features=IsolateSandboxedIframes",  # for run_in_frame
            f"--user-data-dir={folder}", "about:blank",
        ]  # fmt: skip
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            found = next(filter(None, (re.search(r"ws://([\d.:]+)/", line) for line in lines)))
            try:
                with connect(_find_tab(found[1]), max_size=None) as socket:
                    yield Page(socket)
            finally:
                process.terminate()


def _find_tab(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/json", timeout=_SECONDS) as answer:
        tabs = json.load(answer)
    return next(str(tab["webSocketDebuggerUrl"]) for tab in tabs if tab["type"] == "page")
