"""Draw with resvg in a process of its own, which has limits of time and memory.

resvg may hang or crash on hostile input. The process reads drawings from standard input, each with
its length in front, and writes their pixels in the same way.
"""

import io
import json
import select
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

SECONDS = 5.0
"""Time limit of one drawing."""
MEMORY_BYTES = 2 * 2**30
"""Limit of the address space of the process."""


class Renderer:
    """Draw on white squares; replace a process that takes too long or dies."""

    def __init__(self, side: int) -> None:
        self._side = side  # pixels
        self._process: subprocess.Popen[bytes] | None = None

    def draw(self, svg: str) -> npt.NDArray[np.uint8] | None:
        """Return [side, side, 3]; None if resvg cannot draw it within the limits.

        The drawing keeps its proportions and is in the centre.
        """
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = self._start()
        process, request = self._process, json.dumps(svg).encode()
        assert process.stdin is not None
        assert process.stdout is not None

        # send the drawing
        try:
            process.stdin.write(struct.pack("<I", len(request)) + request)
            process.stdin.flush()
        except OSError:  # the process has died
            self.close()
            return None

        # receive the pixels
        ready, _, _ = select.select([process.stdout], [], [], SECONDS)
        header = process.stdout.read(4) if ready else b""
        if len(header) < 4:
            self.close()
            return None
        pixels = process.stdout.read(struct.unpack("<I", header)[0])
        if not pixels:
            return None
        return np.frombuffer(pixels, np.uint8).reshape(self._side, self._side, 3)

    def close(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: modules of this folder do not hide those of the standard library
        command = [sys.executable, "-P", __file__, str(self._side), str(MEMORY_BYTES)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )


def draw_all(svgs: Iterable[str], side: int) -> Iterator[npt.NDArray[np.uint8] | None]:
    """Yield the picture [side, side, 3] of each drawing; None for one that cannot be drawn."""
    renderer = Renderer(side)
    try:
        for svg in svgs:
            yield renderer.draw(svg)
    finally:
        renderer.close()


def _serve(side: int, memory_bytes: int) -> None:
    """Read drawings from standard input; write their pixels to standard output."""
    import resource

    import resvg_py
    from PIL import Image

    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    while len(header := requests.read(4)) == 4:
        svg = json.loads(requests.read(struct.unpack("<I", header)[0]))
        try:  # dpi: with its default of 0 nothing in points is drawn
            png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, dpi=96))
        except ValueError:
            png = b""

        pixels = b""
        if png:
            picture = Image.open(io.BytesIO(png)).convert("RGBA")
            canvas = Image.new("RGBA", (side, side), "white")
            corner = (side - picture.width) // 2, (side - picture.height) // 2
            canvas.alpha_composite(picture, corner)
            pixels = canvas.convert("RGB").tobytes()

        replies.write(struct.pack("<I", len(pixels)) + pixels)
        replies.flush()


if __name__ == "__main__":
    _serve(*map(int, sys.argv[1:]))
