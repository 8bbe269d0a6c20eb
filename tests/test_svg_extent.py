"""Drawings without a size: their page, compared with the size of resvg's picture."""

import io

import hypothesis.strategies as st
import pytest
import resvg_py
from hypothesis import example, given
from PIL import Image

from data_pipeline.svg import SVGRefused, canonicalise
from data_pipeline.svg.extent import find_extent
from data_pipeline.svg.parse import parse_tree
from data_pipeline.svg.prune import prune_tree

BOX = '<path d="M5 5h20v30h-20z"/>'
DOUBLINGS = f'<g id="a20">{BOX}</g>' + "".join(
    f'<g id="a{n}"><use href="#a{n + 1}"/><use href="#a{n + 1}"/></g>' for n in range(20)
)
EDGE = 1e-4
"""Extent that is zero but for rounding: an outline that ends at the origin's row or column."""
NUM_NUMBERS = {"m": 2, "l": 2, "h": 1, "v": 1, "c": 6, "s": 4, "q": 4, "t": 2, "z": 0}


def drawing(body: str, attributes: str = "") -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" {attributes}>{body}</svg>'


def size_of_picture(svg: str) -> tuple[int, int]:
    """Return the width and height that resvg gives the picture, in whole pixels."""
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, dpi=96))
    return Image.open(io.BytesIO(png)).size


numbers = st.floats(-20, 90).map(lambda number: f"{number:.1f}")
sizes = st.floats(0.5, 60).map(lambda number: f"{number:.1f}")
flags = st.sampled_from("01")


@st.composite
def segments(draw: st.DrawFn) -> str:
    command = draw(st.sampled_from("mlhvcsqtaz"))
    letter = draw(st.sampled_from((command, command.upper())))
    if command == "a":
        radii, angle, end = draw(sizes) + " " + draw(sizes), draw(numbers), draw(numbers)
        return f"{letter}{radii} {angle} {draw(flags)}{draw(flags)}{end} {draw(numbers)}"
    return letter + " ".join(draw(numbers) for _ in range(NUM_NUMBERS[command]))


points = st.tuples(numbers, numbers).map(" ".join)
path_data = st.tuples(points, st.lists(segments(), min_size=1, max_size=6)).map(
    lambda path: f"M{path[0]}{''.join(path[1])}"
)
shapes = st.one_of(
    path_data.map('<path d="{}"'.format),
    st.builds('<rect x="{}" y="{}" width="{}" height="{}"'.format, numbers, numbers, sizes, sizes),
    st.builds('<ellipse cx="{}" cy="{}" rx="{}" ry="{}"'.format, numbers, numbers, sizes, sizes),
    st.builds('<circle cx="{}" cy="{}" r="{}"'.format, numbers, numbers, sizes),
    st.builds('<line x1="{}" x2="{}" y1="{}" y2="{}"'.format, numbers, numbers, numbers, numbers),
    st.builds('<polygon points="{},{},{}"'.format, points, points, points),
    st.builds('<use href="#b" x="{}" y="{}"'.format, numbers, numbers),
)
transforms = st.one_of(
    st.sampled_from(("scale(2)", "scale(.5 -3)", "skewX(20)", "skewY(-30) rotate(9)")),
    points.map("matrix(.5 .2 -.3 1.2 {})".format),
    st.builds("rotate({} {})".format, numbers, points),
    numbers.map("translate({})".format),
)


@given(shape=shapes, transform=transforms, outer=transforms, used=path_data)
@example('<path d="M5 5h1m90 90"', "scale(2)", "scale(2)", "M0 0h1")
@example('<path d="M5 5h9Z m9 9 h2 x"', "scale(2)", "scale(2)", "M0 0h1")
def test_the_page_is_that_of_usvg(shape: str, transform: str, outer: str, used: str) -> None:
    definition = f'<defs><g id="b"><path d="{used}"/></g></defs>'
    body = f'{definition}<g transform="{outer}">{shape} transform="{transform}"/></g>'
    svg = drawing(body)
    try:
        extent = find_extent(prune_tree(parse_tree(svg, max_bytes=10_000)))
    except SVGRefused:
        extent = None
    picture = size_of_picture(svg)
    if extent is None or min(extent) < EDGE:
        # resvg gives a drawing without an extent 100 pixels, and another one at least one pixel
        assert picture == (100, 100) or min(picture) == 1
    else:
        for side, pixels in zip(extent, picture, strict=True):
            assert max(1, side) == pytest.approx(pixels, abs=0.51)


@pytest.mark.parametrize(
    ("body", "attributes", "aspect"),
    [
        (BOX, "", (25, 35)),
        (BOX, 'width="400"', (25, 35)),
        (BOX, 'width="100%" height="50%"', (25, 35)),
        (BOX, 'width="20" height="auto"', (25, 35)),
        (f"<g transform='translate(25 35)'>{BOX}</g>", "", (50, 70)),
        (BOX, 'transform="translate(25 35)"', (50, 70)),
        (f'{BOX}<rect fill="none" width="100" height="50"/>', "", (100, 50)),
        (f'{BOX}<rect display="none" width="100" height="50"/>', "", (25, 35)),
        (f'<g stroke="red" stroke-width="20">{BOX}</g>', "", (25, 35)),
    ],
)
def test_a_drawing_without_a_size_ends_at_its_outlines(
    body: str, attributes: str, aspect: tuple[float, float]
) -> None:
    canonical = canonicalise(drawing(body, attributes))
    assert canonicalise(canonical) == canonical

    assert size_of_picture(drawing(body, attributes)) == aspect
    width, height = (256 * side / max(aspect) for side in aspect)
    assert canonical.startswith(drawing("", f'viewBox="0 0 {width:.1f}'.removesuffix(".0"))[:-7])
    assert f" {height:.1f}".removesuffix(".0") + '"' in canonical


@pytest.mark.parametrize(
    ("body", "attributes"),
    [
        ("<text x='3' y='9'>a</text>", ""),
        (f"{BOX}<text x='3' y='9'>a</text>", ""),
        ("<rect width='50%' height='9'/>", ""),
        ("<rect width='2em' height='9'/>", ""),
        ("<path d='M-9-9h5v5z'/>", ""),
        ("<path d='M-9-9h50v5z'/>", ""),
        ("<path d='M5 5'/>", ""),
        ("<path d='M5 5h1e999'/>", 'width="5" height="0"'),
        (BOX, 'width="0" height="20"'),
        (BOX, 'viewBox="0 0 0 10"'),
        (f"<svg>{BOX}</svg>", ""),
        (f"<symbol id='a'>{BOX}</symbol><use href='#a'/>", ""),
        (f"<marker id='a'>{BOX}</marker><path d='M0 0h9v9' marker-end='url(#a)'/>", ""),
        (f"<g transform='scale(2)' transform-origin='50% 50%'>{BOX}</g>", ""),
        ("<g id='a'><use href='#a'/></g>", ""),
        (DOUBLINGS, ""),
    ],
)  # fmt: skip
def test_a_page_that_depends_on_more_than_outlines_is_refused(body: str, attributes: str) -> None:
    with pytest.raises(SVGRefused) as refusal:
        canonicalise(drawing(body, attributes))
    assert refusal.value.reason in ("no_viewbox", "empty")
