"""Canonical SVG: turn one SVG string into one safe canonical SVG string, or refuse it by name.

The package reads no files and no captions.
"""

from data_pipeline.svg.canonical import canonicalise
from data_pipeline.svg.errors import SVGRefused
from data_pipeline.svg.lengths import GRID

__all__ = ["GRID", "SVGRefused", "canonicalise"]
