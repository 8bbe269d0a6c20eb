"""Rewriting of drawings: numbers, style sheets, references, groups and precision."""

import pytest

from tests.drawings import GRID24, HEAD, LINE, inner

REWRITTEN = {
    "path": (GRID24, '<path d="M1.5,3H12V6z"/>', '<path d="m16 32h112v32z"/>'),
    "shapes": (
        GRID24,
        '<circle r="3" cx="12" cy="12"/><ellipse rx="1" ry="2"/>'
        '<rect x="1" width="3px" height="50%" rx="1"/>'
        '<line x2="24"/><polygon points="0,0 12,0 12-12"/><polyline points="1 1 2 2 3"/>',
        '<circle cx="128" cy="128" r="32"/><ellipse rx="10.7" ry="21"/>'
        '<rect x="11" width="32" height="128" rx="10.7"/><line x2="256"/>'
        '<polygon points="0 0 128 0 128-128"/><polyline points="11 11 21 21"/>',
    ),
    "thin lines": (
        HEAD.replace("256 256", "2560 2560"),
        '<rect y="5" width="2560" height=".2"/><path stroke-width="3" d="M0 0h60"/>',
        '<rect y="0" width="256" height=".02"/><path stroke-width=".3" d="m0 0h6"/>',
    ),
    "strokes": (
        GRID24,
        '<g stroke="red" stroke-width="1.5" stroke-dasharray="1, 2" stroke-dashoffset="1">'
        + LINE
        + "</g>",
        '<g stroke="red" stroke-width="16" stroke-dasharray="10.67 21.33" stroke-dashoffset="10.7">'
        '<path d="m0 0h96"/></g>',
    ),
    "transforms": (
        GRID24,
        '<g transform="translate(1,2),rotate(45 12 12)"><path transform="scale(10)" d="M.5.5h1.2"/>'
        '<path transform="matrix(1 0 0 1 3 0)" d="M0 0h3"/></g>',
        '<g transform="translate(10.7 21.3) rotate(45 128 128)">'
        '<path transform="scale(10)" d="m5.3 5.3h12.8"/>'
        '<path transform="translate(32 0)" d="m0 0h32"/></g>',
    ),
    "shifted page": (
        HEAD.replace("0 0 256 256", "0 -960 960 960"),
        '<path d="m480-480 120 0"/><circle cx="480" cy="-480" r="30"/>',
        '<path d="m128 128h32"/><circle cx="128" cy="128" r="8"/>',
    ),
    "shifted page with a place left at 0": (
        HEAD.replace("0 0 256 256", "-12 -12 24 24"),
        '<circle r="6"/>',
        '<g transform="scale(10.667) translate(12 12)"><circle r="6"/></g>',
    ),
    "shifted page with a transform": (
        HEAD.replace("0 0 256 256", "0 -960 960 960"),
        '<path transform="rotate(90)" d="M0 0h480"/>',
        '<g transform="scale(.26667) translate(0 960)">'
        '<path transform="rotate(90)" d="m0 0h480"/></g>',
    ),
    "text keeps its numbers": (
        GRID24,
        '<text x="50%" y="3" font-size="5">a  <tspan dx="1em">b</tspan> c</text>'
        '<path d="M0 0h1.23"/>',
        '<g transform="scale(10.667)">'
        '<text x="12" y="3" font-size="5">a  <tspan dx="1em">b</tspan> c</text>'
        '<path d="m0 0h1.2"/></g>',
    ),
    "filters": (
        GRID24,
        '<filter id="f" filterUnits="userSpaceOnUse" x="3" width="9">'
        '<feGaussianBlur stdDeviation=".75"/><feOffset dx="3" in="rabbit" result="hare"/>'
        '<feColorMatrix values="0 0.123456 1.0" result="rabbit"/>'
        '<feBlend in2="hare"/></filter><path filter="url(#f)" d="M0 0h3"/>',
        '<filter id="a" x="32" width="96" filterUnits="userSpaceOnUse">'
        '<feGaussianBlur stdDeviation="8"/>'
        '<feOffset dx="32" in="b" result="a"/><feColorMatrix result="b" values="0 .123 1"/>'
        '<feBlend in2="a"/></filter><path filter="url(#a)" d="m0 0h32"/>',
    ),
    "gradients": (
        GRID24,
        '<linearGradient id="stops"><stop offset="50%" style="stop-color:red"/></linearGradient>'
        '<linearGradient id="g" xlink:href="#stops" gradientUnits="userSpaceOnUse" x1="3" '
        'gradientTransform="translate(1)"/>'
        '<radialGradient id="box" href="#stops" cx=".5" r="1"/>'
        '<path fill="url(#g)" stroke="url( \'#box\' ) #f00" d="M0 0h3"/>',
        '<linearGradient id="a"><stop offset=".5" stop-color="red"/></linearGradient>'
        '<linearGradient id="b" href="#a" x1="32" gradientUnits="userSpaceOnUse" '
        'gradientTransform="translate(11)"/>'
        '<radialGradient id="c" href="#a" cx=".5" r="1"/>'
        '<path fill="url(#b)" stroke="url(#c) #f00" d="m0 0h32"/>',
    ),
    "use": (
        GRID24,
        '<defs><g id="ear"><path d="M0 0h3"/></g></defs><use xlink:href="#ear" x="3"/>',
        '<defs><g id="a"><path d="m0 0h32"/></g></defs><use href="#a" x="32"/>',
    ),
    "clip path": (
        GRID24,
        '<clipPath id="c"><path d="M0 0h3v3z"/></clipPath><path clip-path="url(#c)" d="M0 0h3"/>',
        '<clipPath id="a"><path d="m0 0h32v32z"/></clipPath>'
        '<path clip-path="url(#a)" d="m0 0h32"/>',
    ),
    "nested svg": (
        GRID24,
        '<svg x="3" width="9" viewBox="0 0 1 1"><path d="M0 0h.505"/></svg>',
        '<g transform="scale(10.667)"><svg x="3" width="9" height="24" viewBox="0 0 1 1">'
        '<path d="m0 0h.505"/></svg></g>',
    ),
    "style sheet": (
        HEAD,
        "<style>/* x */ @import 'http://x'; .a{fill:#f00;stroke:url(http://x)} path#q{fill:blue} "
        "path{opacity:.20001} .a:hover{fill:green}</style><path class='a b' d='M0 0h9'/>"
        "<path class='a' id='q' d='M0 0h9' style='fill:gold'/>",
        '<path opacity=".2" fill="#f00" d="m0 0h9"/><path opacity=".2" fill="gold" d="m0 0h9"/>',
    ),
    "selectors with ancestors": (
        HEAD,
        "<style>#l .a{fill:red} g .a{stroke:blue} svg g g .a{opacity:.5} "
        ".b .c path{fill:gold} .c .b path{fill:tan}</style>"
        "<g id='l'><path class='a' d='M0 0h9'/></g><path class='a' d='M0 0h9'/>"
        "<g class='b'><g class='c'><path d='M0 0h9'/></g></g>",
        '<path fill="red" stroke="blue" d="m0 0h9"/><path d="m0 0h9"/>'
        '<path fill="gold" d="m0 0h9"/>',
    ),
    "a clip rule without clip path": (
        HEAD,
        '<path clip-rule="evenodd" d="M0 0h9"/>',
        '<path d="m0 0h9"/>',
    ),
    "text around removed elements": (
        HEAD,
        "<text>a<set/>b<tspan>c</tspan>d<title>rabbit</title>e</text>",
        "<text>ab<tspan>c</tspan>de</text>",
    ),
    "a link in text": (
        HEAD,
        '<text>a <a href="http://x">b</a></text>',
        "<text>a <tspan>b</tspan></text>",
    ),
    "links and groups": (
        HEAD,
        f'<a href="http://x"><g id="n"><g>{LINE}</g></g></a>',
        '<path d="m0 0h9"/>',
    ),
}


@pytest.mark.parametrize(("head", "body", "expected"), REWRITTEN.values(), ids=REWRITTEN.keys())
def test_drawings_are_rewritten(head: str, body: str, expected: str) -> None:
    assert inner(body, head) == expected


def test_style_sheets_apply_from_any_place() -> None:
    sheets = (
        "<metadata><style>.a{fill:red}<x/></style></metadata>"
        "<style><![CDATA[.a{stroke:]]>blue}</style>"
    )
    path = inner(f"<path class='a' d='M0 0h9'/>{sheets}")
    assert path == '<path fill="red" stroke="blue" d="m0 0h9"/>'


def test_text_around_removed_elements_stays_in_order() -> None:
    assert inner("<text>a<x>no</x>b<tspan>c</tspan><!-- no -->d&amp;<title>no</title>e</text>") == (
        "<text>ab<tspan>c</tspan>d&amp;e</text>"
    )


def test_a_link_of_another_namespace_than_xlink_refers_to_nothing() -> None:
    head = HEAD.replace("http://www.w3.org/1999/xlink", "&amp;#38;#38;ns_xlink;")
    assert inner(f'<g id="n">{LINE}</g><use xlink:href="#n"/>', head) == inner(LINE)


def test_filters_refer_only_to_elements_of_the_drawing() -> None:
    shape = '<path id="p" filter="url(#f)" d="M0 0h9"/>'
    assert "feImage" not in inner(
        f'<filter id="f"><feImage href="http://x"/><feFlood/></filter>{shape}'
    )
    assert '<feImage href="#b"/>' in inner(f'<filter id="f"><feImage href="#p"/></filter>{shape}')


def test_visible_rounding_adds_a_decimal_where_it_is_worth_the_text() -> None:
    """Rectangles over the page, each edge a third of a unit off the grid."""
    head = GRID24.replace("<svg ", '<svg fill="none" stroke="red" stroke-width="1" ')
    small = '<path d="M1 1h7v7H1z"/>'  # moves 112 square units
    assert inner(small, head) == '<path d="m11 11h74v74h-74z"/>'
    large = '<path d="M1 22h22V2H1z"/>'  # moves 299
    assert inner(large, head) == '<path d="m10.7 234.7h234.6v-213.4h-234.6z"/>'

    # not worth hundreds of characters
    dots = "".join(f"M{n} {row}.1h.1" for n in range(1, 23) for row in range(3, 21))
    assert inner(large.replace("z", f"z{dots}"), head).startswith('<path d="m11 235h234v')

    # a fill has one edge, and only the outline of a dense drawing counts in full
    filled = large.replace("<path", '<path fill="red" stroke="none"')
    assert inner(filled, head).endswith('d="m11 235h234v-214h-234z"/>')
    edges = "M1 22h22V2H1z" * 8
    assert inner(filled.replace("M1 22h22V2H1z", edges), head).count("234.7") == 1


def test_coarse_numbers_are_rounded_once() -> None:
    """245.45 is 245 although 245.5, its value with one more decimal, is 246."""
    shape = '<path d="M0 24h24V0H0zm23.011-.989H.989V.989h22.022z"/>'
    assert inner(shape, GRID24) == '<path d="m0 256h256v-256h-256zm245-11h-234v-234h234z"/>'


def test_a_repeated_outline_gets_the_precision_of_each_place() -> None:
    line, finer = '<path d="m1 1 2.34 2"/>', '<g transform="scale(8)"><path d="m1 1 2.34 2"/></g>'
    written, as_finer = '<path d="m1 1 2 2"/>', '<g transform="scale(8)"><path d="m1 1 2.3 2"/></g>'
    assert inner(line + line + finer + line) == written + written + as_finer + written
    same = '<polyline points="M1 1 3 3"/><path d="M1 1 3 3"/>'
    assert inner(same) == '<polyline points="1 1 3 3"/><path d="m1 1 2 2"/>'
    stroked = '<path stroke="red" d="m.3 0v600"/>'
    assert inner(stroked) == '<path stroke="red" d="m0 0v600"/>'
    assert inner(stroked * 2) == stroked * 2  # the area moved by rounding counts each time


def test_chains_of_references_take_linear_time() -> None:
    chain = "".join(f'<linearGradient id="g{n}" href="#g{n + 1}"/>' for n in range(5000))
    assert inner(chain + LINE) == '<path d="m0 0h9"/>'
    kept = inner(f'{chain}<path fill="url(#g0)" d="M0 0h9"/>')
    assert kept.count("<linearGradient") == 5000
