"""Make raw drawings comparable with canonical ones, for pictures of both."""

import re
import zlib
from typing import Any

import numpy as np
from lxml import etree

SIDE = 64  # pixels
MAX_BYTES = 20_000_000
SVG = "{http://www.w3.org/2000/svg}"
_HREFS = ("href", "{http://www.w3.org/1999/xlink}href")
_BITMAPS = (f"{SVG}image", f"{SVG}feImage", "image", "feImage")


def comparable(svg: bytes | str) -> str:
    """Return the drawing without its bitmaps, on a canvas of whole pixels.

    No canonical drawing has bitmaps. resvg rounds the size of a picture up and stretches the
    drawing to it, which is not a property of the drawing. resvg gives the size of a drawing that
    has none; such a drawing stays without a canvas.
    """
    data = svg.encode("utf-8", "surrogatepass") if isinstance(svg, str) else svg
    if data.startswith(b"\x1f\x8b"):
        data = zlib.decompressobj(wbits=31).decompress(data, MAX_BYTES)
    root = _parse(data)
    if root is None:
        return data.decode("utf-8", "replace")

    # remove bitmaps
    for bitmap in list(root.iter(*_BITMAPS)):
        parent = bitmap.getparent()
        if parent is not None and not any(bitmap.get(name, "").startswith("#") for name in _HREFS):
            parent.remove(bitmap)

    # put it on a canvas of whole pixels
    numbers = root.get("viewBox", "").replace(",", " ").split()
    box = [float(number) for number in numbers] or [0.0] * 4
    width = _pixels(root.get("width", "100%"), box[2])
    height = _pixels(root.get("height", "100%"), box[3])
    if not width or not height:
        return etree.tostring(root, encoding="unicode")
    root.set("width", str(width))
    root.set("height", str(height))
    canvas = etree.Element(
        f"{SVG}svg", width=str(SIDE), height=str(SIDE), viewBox=f"0 0 {width} {height}"
    )
    canvas.append(root)
    return etree.tostring(canvas, encoding="unicode")


def _parse(data: bytes) -> Any:
    """Return the root `svg`, or None. resvg too reads a document with an error in its prologue."""
    parser = etree.XMLParser(
        resolve_entities="internal", no_network=True, load_dtd=False, recover=True
    )
    try:
        root = etree.fromstring(data.lstrip(), parser)
    except etree.XMLSyntaxError:
        return None
    return root if root is not None and root.tag in (f"{SVG}svg", "svg") else None


def _pixels(length: str, whole: float) -> float:
    """Return a length in pixels; `whole` if it is not a length (`1em`, `auto`)."""
    match = re.fullmatch(r"\s*([\d.]+)(px|pt|pc|mm|cm|in|%|)\s*", length)
    if match is None:
        return whole
    factors = {
        "pt": 4 / 3,
        "pc": 16.0,
        "mm": 96 / 25.4,
        "cm": 96 / 2.54,
        "in": 96.0,
        "%": whole / 100,
    }
    return float(match[1]) * factors.get(match[2], 1.0)


def difference(before: np.ndarray, after: np.ndarray) -> float:
    """Return the mean absolute difference of the two pictures in 1/255."""
    return float(np.abs(before.astype(np.int16) - after.astype(np.int16)).mean())
