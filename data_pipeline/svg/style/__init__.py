"""CSS of a drawing: turn style sheets and style attributes into attributes of its elements.

Rules apply as on a screen of light scheme. CSS that changes the drawing and that no attribute can
hold is refused by name.
"""

from data_pipeline.svg.style.cascade import apply_styles
from data_pipeline.svg.style.elements import read_elements
from data_pipeline.svg.style.properties import preserves_white_space

__all__ = ["apply_styles", "preserves_white_space", "read_elements"]
