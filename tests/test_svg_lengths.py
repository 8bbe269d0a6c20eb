"""Lengths of drawings: percentages, defaults, origins of transforms, and precision."""

import pytest

from data_pipeline.svg import canonicalise
from tests.drawings import GRID24, HEAD, LINE, inner, refusal_reason

SVG = '<svg xmlns="http://www.w3.org/2000/svg" '
TEXT = "<text>a</text>"  # an element that needs a scaled group
USER = 'gradientUnits="userSpaceOnUse"'
PAINTED = '<path fill="url(#g)" d="M0 0h24v9z"/>'
SCALED = '<g transform="scale(10.667)">'

# name → (drawing in a page of 24 by 24, a part of its canonical form)
RESOLVED = {
    "ends of a gradient": (
        f'{TEXT}<linearGradient id="g" {USER}/>{PAINTED}',
        '<linearGradient id="a" x2="24" gradientUnits="userSpaceOnUse"/>',
    ),
    "circle of a gradient": (
        f'{TEXT}<radialGradient id="g" {USER} cx="25%"/>{PAINTED}',
        '<radialGradient id="a" cx="6" cy="12" r="12" gradientUnits="userSpaceOnUse"/>',
    ),
    "ends that a template gives": (
        f'{TEXT}<linearGradient id="t" {USER} x2="75%"/><linearGradient id="g" href="#t"/>'
        f"{PAINTED}",
        '<linearGradient id="a" x2="18" gradientUnits="userSpaceOnUse"/>'
        '<linearGradient id="b" href="#a"/>',
    ),
    "region of a mask": (
        f'{TEXT}<mask id="g" maskUnits="userSpaceOnUse">{LINE}</mask>'
        '<path mask="url(#g)" d="M0 0h9"/>',
        '<mask id="a" x="-2.4" y="-2.4" width="28.8" height="28.8" maskUnits="userSpaceOnUse">',
    ),
    "region of a filter": (
        f'{TEXT}<filter id="g" filterUnits="userSpaceOnUse" x="10%"><feFlood width="50%"/></filter>'
        '<path filter="url(#g)" d="M0 0h9"/>',
        '<filter id="a" x="2.4" y="-2.4" width="28.8" height="28.8" filterUnits="userSpaceOnUse">'
        '<feFlood width="12"/>',
    ),
    "primitives in units of the box": (
        '<filter id="g" primitiveUnits="objectBoundingBox"><feFlood width="50%"/></filter>'
        '<path filter="url(#g)" d="M0 0h9"/>',
        '<feFlood width="50%"/>',
    ),
    "tile of a pattern": (
        '<pattern id="g" patternUnits="userSpaceOnUse" width="25%" height="12.5%">'
        f"<rect width='50%' height='1'/></pattern>{PAINTED}",
        '<pattern id="a" width="6" height="3" patternUnits="userSpaceOnUse">'
        '<rect width="12" height="1"/>',
    ),
    "tile in units of the box": (
        f'<pattern id="g" width="25%" height="12.5%">{LINE}</pattern>{PAINTED}',
        '<pattern id="a" width="25%" height="12.5%">',
    ),
    "nested picture": (
        '<svg viewBox="0 0 8 4"><rect x="50%" width="25%" height="25%"/></svg>',
        '<svg width="24" height="24" viewBox="0 0 8 4"><rect x="4" width="2" height="1"/>',
    ),
    "nested picture without viewBox": (
        '<svg x="25%" width="50%" height="12"><svg height="50%"><rect width="50%" height="50%"/>'
        "</svg></svg>",
        '<svg x="6" width="12" height="12"><svg height="6"><rect width="6" height="3"/>',
    ),
    "symbol": (
        f'<symbol id="s" viewBox="0 0 9 9">{LINE}</symbol><use href="#s" width="50%"/>',
        '<use href="#a" width="12" height="24"/>',
    ),
    "gradient of an element in a nested picture": (
        f'<linearGradient id="g" {USER} x2="50%"/>'
        f'<svg width="9" height="9" viewBox="0 0 4 4">{PAINTED}</svg>',
        'x2="2"',
    ),
    "dashes": (
        '<path stroke="red" stroke-width="10%" stroke-dasharray="5% 1, 12.5%" d="M0 0h9"/>',
        'stroke-width="2.4" stroke-dasharray="1.2 1 3"',
    ),
    "radii": ('<rect rx="25%" ry="12.5%" width="9" height="9"/>', 'rx="64" ry="32"'),
    "list of text positions": ('<text x="25% 50%">ab</text>', '<text x="6 12">'),
}


@pytest.mark.parametrize(("body", "part"), RESOLVED.values(), ids=RESOLVED.keys())
def test_lengths_of_the_viewport_become_numbers(body: str, part: str) -> None:
    assert part in inner(body, GRID24)


def test_defaults_are_not_written_where_they_keep_their_meaning() -> None:
    gradient = f'<linearGradient id="g" {USER}/>{PAINTED}'
    assert "x2" not in inner(gradient, GRID24)
    assert "x2" not in inner(f"{TEXT}<linearGradient id='g'/>{PAINTED}", GRID24)


@pytest.mark.parametrize("side", [7, 14, 28, 29, 55, 57, 113])
def test_defaults_are_written_for_every_size_of_the_page(side: int) -> None:
    head = GRID24.replace("24 24", f"{side} {side}")
    assert f' x2="{side}"' in inner(f'{TEXT}<linearGradient id="g" {USER}/>{PAINTED}', head)


def test_percentages_refer_to_the_view_box_of_a_picture_with_another_aspect() -> None:
    head = f'{SVG}viewBox="0 0 10 10" width="20" height="10">'
    assert canonicalise(f'{head}<rect width="100%" height="50%"/></svg>').endswith(
        'viewBox="0 0 256 128"><g transform="scale(12.8) translate(5 0)">'
        '<rect width="10" height="5"/></g></svg>'
    )


def test_a_percentage_with_several_meanings_is_refused() -> None:
    twice = f'<svg viewBox="0 0 4 4">{PAINTED}</svg>{PAINTED}'
    ambiguous = f'<linearGradient id="g" {USER} x2="50%"/>{twice}'
    assert refusal_reason(f"{GRID24}{ambiguous}</svg>") == "unsupported_geometry"
    assert "linearGradient" in inner(f'<linearGradient id="g" {USER} x2="4"/>{twice}', GRID24)


def test_a_gradient_keeps_numbers_of_a_template_in_other_units() -> None:
    template = '<linearGradient id="t" x2=".5" gradientTransform="translate(.25)"/>'
    user = f'<linearGradient id="g" href="#t" {USER}/>'
    assert inner(template + user + PAINTED, GRID24).startswith(
        '<linearGradient id="a" x2=".5" gradientTransform="translate(.25)"/>'
        '<linearGradient id="b" href="#a" x2="5" gradientUnits="userSpaceOnUse" '
        'gradientTransform="translate(3)"/>'
    )


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ('width="4em" height="2em"', 'viewBox="0 0 256 128"><path d="m0 0h36"/>'),
        ('width="4em" height="2em" font-size="8"', 'viewBox="0 0 256 128" font-size="8">'),
        ('width="8ex" height="4rem"', 'viewBox="0 0 256 256"><path d="m0 0h36"/>'),
        ('width="2EM" height="32PX"', 'viewBox="0 0 256 256"><path d="m0 0h72"/>'),
        ('width="101.6q" height="25.4MM"', 'viewBox="0 0 256 256"><path d="m0 0h24"/>'),
    ],
)
def test_sizes_in_any_units_give_a_page(attributes: str, expected: str) -> None:
    assert expected in canonicalise(f"{SVG}{attributes}>{LINE}</svg>")


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ('width="30" height="10"', 'viewBox="0 0 256 85.3"><g transform="scale(25.6 8.533)">'),
        ('width="10" height="40"', 'viewBox="0 0 64 256"><g transform="scale(6.4 25.6)">'),
        ('width="10" height="10"', 'viewBox="0 0 256 256"><circle'),
        ("", 'viewBox="0 0 256 256"><circle'),
    ],
)
def test_a_picture_without_a_fixed_aspect_is_stretched(page: str, expected: str) -> None:
    head = f'{SVG}viewBox="0 0 10 10" preserveAspectRatio="none" {page}>'
    result = canonicalise(f'{head}<circle cx="5" cy="5" r="4"/></svg>')
    assert expected in result
    assert canonicalise(result) == result


ORIGINS = {
    "lengths": ('transform-origin="3 6px"', "translate(32 64) rotate(45) translate(-32-64)"),
    "percentages": (
        'transform-origin="50% 25%"',
        "translate(128 64) rotate(45) translate(-128-64)",
    ),
    "one value": ('transform-origin="left"', "translate(0 128) rotate(45) translate(0-128)"),
    "keywords": ('transform-origin="top right"', "translate(256 0) rotate(45) translate(-256 0)"),
    "box of the shape": (
        'transform-box="fill-box" transform-origin="center"',
        "translate(64 96) rotate(45) translate(-64-96)",
    ),
    "none": ('transform-box="fill-box"', "rotate(45)"),
}


@pytest.mark.parametrize(("attributes", "expected"), ORIGINS.values(), ids=ORIGINS.keys())
def test_transforms_turn_about_their_origin(attributes: str, expected: str) -> None:
    rect = f'<rect x="3" y="6" width="6" height="6" transform="rotate(45)" {attributes}/>'
    assert f'transform="{expected}"' in inner(rect, GRID24)


def test_an_origin_in_an_unknown_box_is_refused_only_if_it_acts() -> None:
    origin = 'transform-box="fill-box" transform-origin="center"'
    assert inner(f'<path {origin} d="M0 0h9"/>') == '<path d="m0 0h9"/>'
    moved = f'{HEAD}<path {origin} transform="scale(2)" d="M0 0h9"/></svg>'
    assert refusal_reason(moved) == "unsupported_geometry"


def test_the_transform_of_the_root_moves_its_content_and_its_clip_path() -> None:
    head = GRID24.replace("<svg ", '<svg transform="rotate(90)" clip-path="url(#c)" fill="red" ')
    clip = f'<clipPath id="c">{LINE}</clipPath>'
    assert inner(f"{clip}{LINE}", head) == (
        '<g transform="rotate(90)" clip-path="url(#a)"><clipPath id="a"><path d="m0 0h96"/>'
        '</clipPath><path d="m0 0h96"/></g>'
    )
    assert inner(
        LINE, HEAD.replace("<svg ", '<svg transform="scale(2)" transform-origin="8 0" ')
    ) == ('<g transform="translate(8 0) scale(2) translate(-8 0)"><path d="m0 0h9"/></g>')


NON_SCALING = 'stroke="red" vector-effect="non-scaling-stroke"'


@pytest.mark.parametrize(
    ("head", "body", "width"),
    [
        ('viewBox="0 0 512 512" width="64" height="64"', f'<path {NON_SCALING} d="M0 0h9"/>', "4"),
        ('viewBox="0 0 512 512"', f'<path {NON_SCALING} stroke-width="6" d="M0 0h9"/>', "3"),
        (
            'viewBox="0 0 64 64" width="64" height="64"',
            '<g stroke-width="3" transform="rotate(9) scale(-4 4)">'
            f'<path {NON_SCALING} d="M0 0h9"/></g>',
            "3",
        ),
    ],
)
def test_strokes_that_do_not_scale_get_their_width_on_the_page(
    head: str, body: str, width: str
) -> None:
    result = canonicalise(f"{SVG}{head}>{body}</svg>")
    assert f'stroke-width="{width}" d=' in result
    assert "vector-effect" not in result


def test_strokes_that_do_not_scale_are_refused_where_they_need_several_widths() -> None:
    line = f'<path {NON_SCALING} d="M0 0h9"/>'
    for body in (f'<g transform="scale(1 2)">{line}</g>', f'<svg viewBox="0 0 1 1">{line}</svg>'):
        assert refusal_reason(f"{HEAD}{body}</svg>") == "unsupported_geometry"
    unstroked = '<path vector-effect="non-scaling-stroke" transform="scale(1 2)" d="M0 0h9"/>'
    assert inner(unstroked) == '<path transform="scale(1 2)" d="m0 0h9"/>'


@pytest.mark.parametrize(
    "attribute",
    [
        'filter="blur(2)"',
        'filter="grayscale(1) drop-shadow(4px 4px 1px #000)"',
        'clip-path="circle(5px at 3px 3px)"',
        'clip-path="inset(1px 2px)"',
    ],
)
def test_lengths_in_functions_are_scaled_with_a_group(attribute: str) -> None:
    expected = f'{SCALED}<path {attribute} d="m0 0h9"/></g>'
    assert inner(f'<path {attribute} d="M0 0h9"/>', GRID24) == expected
    root = GRID24.replace("<svg ", f"<svg {attribute} ")
    assert inner(LINE, root) == f'<g transform="scale(10.667)" {attribute}><path d="m0 0h9"/></g>'


def test_matrices_that_move_far_coordinates_back_keep_their_digits() -> None:
    drawing = '<g transform="translate(-123456.7)"><g transform="scale(1.2345678)">{}</g></g>'
    square = '<path d="M100000 0h9"/>'
    assert 'scale(1.234568)"' in inner(drawing.format(square))
    turned = '<path transform="rotate(12.3456789 50000 0)" d="M50000 0h9"/>'
    assert "rotate(12.346 50000 0)" in inner(turned)
    assert "rotate(12.35 50 0)" in inner(turned.replace("50000", "50"))
    gradient = (
        f'<radialGradient id="g" {USER} cx="-200.1234" r=".01" '
        'gradientTransform="matrix(1234.567 0 0 1234.567 247065.7 0)"/>'
    )
    assert 'matrix(1234.567 0 0 1234.567 247065.7 0)"' in inner(gradient + PAINTED)


def test_lengths_that_descendants_use_get_the_precision_of_their_space() -> None:
    for inside in ('<g transform="scale(99)">{}</g>', '<svg viewBox="0 0 2 2">{}</svg>'):
        body = inside.format('<path d="M0 0l.1.1"/>')
        group = f'<g stroke="red" stroke-width=".02" stroke-dasharray=".123">{body}</g>'
        assert 'stroke-width=".02" stroke-dasharray=".123"' in inner(group)
    assert 'stroke-width="1"' in inner(f'<g stroke="red" stroke-width="1.004">{LINE}</g>')


def test_dashed_outlines_get_one_more_decimal() -> None:
    dashed = '<g stroke="red" stroke-dasharray="4 2"><path d="M4 4h16"/></g>'
    assert "m42.7 42.7h170.6" in inner(dashed, GRID24)
    assert "m43 43h170" in inner(dashed.replace("4 2", "none"), GRID24)
    assert "m43 43h170" in inner(dashed.replace("red", "none"), GRID24)
    assert inner(f'<g points="3 4">{LINE}</g>') == '<g points="3 4"><path d="m0 0h9"/></g>'


@pytest.mark.parametrize(
    "body",
    [
        '<path stroke="red" d="M-4000000 12H9000000"/>',
        '<rect x="-4000000" width="9000000" height="9"/>',
        '<polygon points="-4000000 0 9000000 9 9 9"/>',
        '<path stroke="red" stroke-dasharray="9000000" d="M0 0h9"/>',
        '<path transform="translate(9000000)" d="M-9000000 0h9"/>',
        f'{TEXT}<use href="#n" x="9000000"/><g id="n">{LINE}</g>',
    ],
)
def test_a_second_pass_reads_all_far_numbers(body: str) -> None:
    assert inner(body, GRID24)


def test_a_filter_draws_in_its_region_on_an_empty_group() -> None:
    region = 'filterUnits="userSpaceOnUse" x="3" y="3" width="9" height="9"'
    flood = "<feFlood flood-color='red'/>"
    assert inner(f'<filter id="f" {region}>{flood}</filter><g filter="url(#f)"/>').endswith(
        '<g filter="url(#a)"/>'
    )
    assert inner(f'<filter id="f">{flood}</filter><g filter="url(#f)"/>{LINE}') == (
        '<path d="m0 0h9"/>'
    )
