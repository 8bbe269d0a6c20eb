"""Canonical SVG: removed elements and attributes, refusals, the page, and fixed points."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.sources.phosphor import read_phosphor
from data_pipeline.svg import canonicalise
from tests.drawings import HEAD, LINE, doctype, inner, refusal_reason

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "script in a namespace": '<s:script xmlns:s="http://www.w3.org/2000/svg">alert(1)</s:script>',
    "foreign object": "<foreignObject><body onload='x()'>hi</body></foreignObject>",
    "metadata": "<metadata><title>a red rabbit</title></metadata>"
    "<title>rabbit</title><desc>rabbit</desc>",
    "comment": "<!-- a red rabbit --><?php rabbit ?>",
    "editor": '<i:pgf xmlns:i="http://ns.adobe.com/AdobeIllustrator/10.0/">rabbit</i:pgf>',
    "animation": '<g><set attributeName="href" to="javascript:x()"/>'
    '<animate attributeName="d"/></g>',
    "bitmap": '<image href="http://x/y.png"/><image xlink:href="data:image/png;base64,AA"/>',
    "external use": '<use href="http://x/y.svg#a"/><use xlink:href="file:///etc/passwd#a"/>',
    "use of nothing": '<use href="#nowhere"/><use/>',
    "feImage": '<filter id="f"><feImage href="http://x"/></filter>',
    "unused definitions": '<defs><path id="rabbit" d="M0 0h1"/></defs><clipPath id="c">'
    + LINE
    + "</clipPath>",
    "empty groups": '<g id="rabbit"><g transform="rotate(3)"/></g><defs/>',
    "text outside of text": "rabbit",
    "nothing drawn": '<path/><path d=""/><path d="none"/>',
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_elements_that_draw_nothing_leave_no_trace(body: str) -> None:
    assert inner(body + LINE) == '<path d="m0 0h9"/>'


@pytest.mark.parametrize(
    "attribute",
    [
        'onclick="x()"',
        'ONLOAD="x()"',
        'id="rabbit"',
        'class="rabbit"',
        'data-name="rabbit"',
        'fill="url(http://x/#a)"',
        'fill="url(data:image/svg+xml;base64,AA)"',
        "style=\"fill:url('//x')\"",
        'fill="u\\72l(//x)"',
        'filter="url(#nowhere)"',
        'style="background:red;-inkscape-font:rabbit"',
        'xml:space="preserve"',
        'inkscape:label="rabbit" xmlns:inkscape="http://www.inkscape.org/namespaces/inkscape"',
        'xmlns:x="http://rabbit"',
    ],
)
def test_unsafe_and_unused_attributes_are_removed(attribute: str) -> None:
    assert inner(f'<path {attribute} d="M0 0h9"/>') == '<path d="m0 0h9"/>'


REFUSED = {
    "hello": "not_xml",
    "": "not_xml",
    f"{HEAD}<path>": "not_xml",
    f"{HEAD}<path d='\x00'/></svg>": "not_xml",
    f"{HEAD}&nbsp;{LINE}</svg>": "not_xml",
    f"<html>{LINE}</html>": "not_svg",
    f"<svg xmlns='http://example.com' viewBox='0 0 1 1'>{LINE}</svg>": "not_svg",
    doctype('<!ENTITY a "&#60;g/>">', ""): "entities",
    doctype('<!ENTITY a "<g/>">', "&a;"): "entities",
    doctype('<!ENTITY a "b"><!ENTITY c "&a;">', "<text>&c;</text>"): "entities",
    doctype('<!ENTITY a PUBLIC "x" "http://x">', ""): "entities",
    doctype('<!ENTITY a SYSTEM "file:///etc/passwd">', "<text>&a;</text>"): "entities",
    doctype('<!ENTITY % a SYSTEM "http://x"> %a;', ""): "entities",
    doctype('<!ENTITY a "&b;">', "").encode("utf-16"): "entities",
    "<svg><text>a</text></svg>": "no_viewbox",
    "<svg width='100%' height='100%'><text>a</text></svg>": "no_viewbox",
    f"<svg viewBox='0 0 0 10'>{LINE}</svg>": "no_viewbox",
    f"<svg viewBox='0 0 1e999 10'>{LINE}</svg>": "bad_number",
    f"{HEAD}<path d='M1 1h1e300'/></svg>": "bad_path",
    f"{HEAD}<g transform='turn(3)'>{LINE}</g></svg>": "bad_transform",
    f"{HEAD}<style>path:frob {{fill:red}}</style>{LINE}</svg>": "unsupported_style",
    f"{HEAD}<style>@layer a {{path {{fill:red}}}}</style>{LINE}</svg>": "unsupported_style",
    f"{HEAD}</svg>": "empty",
    f"{HEAD}<defs>{LINE}</defs><image href='data:,'/></svg>": "empty",
    f"{HEAD}{' ' * 4_000_000}{LINE}</svg>": "too_large",
}


@pytest.mark.parametrize(
    ("svg", "reason"), REFUSED.items(), ids=[f"{r}-{n}" for n, r in enumerate(REFUSED.values())]
)
def test_refusals_are_named(svg: str | bytes, reason: str) -> None:
    assert refusal_reason(svg) == reason


def test_control_tokens_in_text_stay_text() -> None:
    assert (
        inner("<text>a &lt;end_of_turn> &amp;lt;</text>")
        == "<text>a &lt;end_of_turn&gt; &amp;lt;</text>"
    )


def test_attributes_of_the_root_are_rewritten() -> None:
    svg = (
        '<svg width="48pt" height="24pt" fill="currentColor" stroke="red" version="1.1" x="3" '
        'onload="x()" preserveAspectRatio="none" xml:space="preserve" id="Layer_1">'
        '<path d="M0 0h64"/></svg>'
    )
    assert canonicalise(svg) == (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 128" fill="currentColor" '
        'stroke="red" stroke-width="4"><path d="m0 0h256"/></svg>'
    )


def test_real_icons_are_fixed_points_that_keep_their_colour() -> None:
    for icon in list(read_phosphor())[::43]:
        result = canonicalise(icon.svg)
        assert canonicalise(result) == result
        assert result.startswith(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 256" fill="currentColor">'
        )
        assert result.count("<path") == icon.svg.count(b"<path")


def view_box_and_square(head: str) -> str:
    """Return the canonical size of the viewBox, and the square from (0, 0) to (10, 10)."""
    svg = '<svg xmlns="http://www.w3.org/2000/svg"'
    result = canonicalise(f'{svg} {head}><path d="M0 0H10V10H0z"/></svg>')
    assert canonicalise(result) == result
    return result.removeprefix(f'{svg} viewBox="0 0 ').removesuffix('"/></svg>')


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ('viewBox="0 0 10 5"', '256 128"><path d="m0 0h256v256h-256z'),
        ('viewBox="0 0 10 5" width="20" height="10.01"', '256 128"><path d="m0 0h256v256h-256z'),
        ('viewBox="0 0 10 5" width="1em" height="1em"', '256 128"><path d="m0 0h256v256h-256z'),
        ('viewBox="0 0 30 7"', '256 59.7"><path d="m0 0h85v85h-85z'),
        ('viewBox="0 0 10 5" width="8" height="8"', '256 256"><path d="m0 64h256v256h-256z'),
        ('viewBox="0 0 10 5" width="8cm" height="8cm" preserveAspectRatio="xMinYMin"',
         '256 256"><path d="m0 0h256v256h-256z'),
        ('viewBox="0 0 10 5" width="8" height="8" preserveAspectRatio="xMidYMax"',
         '256 256"><path d="m0 128h256v256h-256z'),
        ('viewBox="0 0 10 5" width="8" height="8" preserveAspectRatio="xMidYMid slice"',
         '256 256"><path d="m-128 0h512v512h-512z'),
        ('viewBox="0 0 10 5" width="8" height="4.004" preserveAspectRatio="none"',
         '256 128"><path d="m0 0h256v256h-256z'),
    ],
)  # fmt: skip
def test_the_view_box_is_fitted_to_the_page(head: str, expected: str) -> None:
    assert view_box_and_square(head) == expected


coordinates = st.floats(-30, 300).map(lambda value: round(value, 2))
attributes = st.fixed_dictionaries(
    {},
    optional={
        "fill": st.sampled_from(["none", "red", "url(#g)", "url(#none)"]),
        "transform-origin": st.sampled_from(["3 4.56", "center", "25%"]),
        "filter": st.sampled_from(["blur(1.234)", "grayscale(1)"]),
        "stroke": st.sampled_from(["none", "blue"]),
        "stroke-width": st.one_of(st.floats(0.01, 30).map(str), st.just("1.2%")),
        "vector-effect": st.just("none"),
        "transform": st.sampled_from(
            [
                "none",
                "scale(3)",
                "rotate(33.333 7 7)",
                "matrix(.5 .1-.2 2 3.33 4)",
                "translate(1.23)",
            ]
        ),
        "opacity": st.floats(0, 1).map(str),
        "style": st.sampled_from(["stroke-dasharray:1.23 4", "mix-blend-mode:screen", "fill:tan"]),
    },
)
shapes = st.one_of(
    st.lists(coordinates, min_size=8, max_size=60).map(
        lambda n: ("path", {"d": f"M{n[0]} {n[1]}L{n[2 : len(n) // 2 * 2]}"})
    ),
    st.lists(coordinates, min_size=8, max_size=8).map(
        lambda n: (
            "path",
            {
                "d": f"M{n[0]} {n[1]}C{n[:6]}S{n[2:6]}A{n[3]} {n[4]} 30 0 1 {n[5]} {n[6]}z".replace(
                    "[", " "
                )
            },
        )
    ),
    st.lists(coordinates, min_size=3, max_size=3).map(  # segments that may vanish
        lambda n: ("path", {"d": f"M{n[0]} {n[1]}h.01v.02zm{n[2]} 9v9h.03v-9m9 9l.01.02"})
    ),
    st.lists(coordinates, min_size=4, max_size=4).map(
        lambda n: (
            "rect",
            dict(zip(("x", "y", "width", "height"), map(str, map(abs, n)), strict=True)),
        )
    ),
    coordinates.map(lambda n: ("circle", {"cx": str(n), "cy": "7.77", "r": str(abs(n))})),
    coordinates.map(lambda n: ("text", {"x": str(n), "dx": "1 2"})),
)


def element(shape: tuple[str, dict[str, str]], more: dict[str, str]) -> str:
    tag, own = shape
    own = {name: re.sub(r"[\[\]]", " ", value) for name, value in own.items()}
    return f"<{tag} " + " ".join(f'{name}="{value}"' for name, value in (own | more).items()) + "/>"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.builds(element, shapes, attributes), min_size=1, max_size=6),
    st.tuples(
        st.sampled_from([0, -7.5, 100]),
        st.sampled_from([0, 3.3]),
        st.floats(0.5, 900),
        st.floats(0.5, 900),
    ),
    attributes,
)
def test_any_drawing_is_a_fixed_point(
    bodies: list[str], view: tuple[float, float, float, float], group: dict[str, str]
) -> None:
    gradient = (
        '<linearGradient id="g" x1="3.3" gradientUnits="userSpaceOnUse"'
        ' gradientTransform="rotate(12.345 600 3)"/>'
    )
    group_attributes = "".join(f' {name}="{value}"' for name, value in group.items())
    body = f"{gradient}<g{group_attributes}>{''.join(bodies)}</g>"
    svg = f'<svg viewBox="{" ".join(map(str, view))}">{body}</svg>'
    result = canonicalise(svg)
    assert canonicalise(result) == result
