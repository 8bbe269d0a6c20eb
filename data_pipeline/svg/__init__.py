"""Turn one SVG string into one safe canonical SVG string, or refuse it by name. Knows no files and no captions."""

from data_pipeline.svg.canonical import GRID, canonicalise
from data_pipeline.svg.read import SVGRefused

__all__ = ["GRID", "SVGRefused", "canonicalise"]
