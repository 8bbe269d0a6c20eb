"""CSS properties of drawings: attributes, transforms, variables and white space."""

import re

import pytest

from data_pipeline.svg import canonicalise
from tests.drawings import HEAD, LINE, fills, inner, refusal_reason

PROPERTIES = [
    ("circle", "r:8px;cx:50%;cy:1in", 'cx="128" cy="96" r="8"'),
    ("circle", "r:8;cx:1;cy:calc", ""),  # lengths of CSS have a unit
    ("rect", "width:9px;height:5px;rx:2px;r:4px;d:none", 'width="9" height="5" rx="2"'),
    ("path", "d:path('M1 1h3')", 'd="m1 1h3"'),
    ("path", "d:none;d:path('M1 1h3');cx:3px", 'd="m1 1h3"'),
    ("mask", "MASK-TYPE:ALPHA", 'mask-type="alpha"'),
    ("mask", "mask-type:alpha;mask-type:unset", ""),
    ("g", "stroke:red;stroke:tan !importan", 'stroke="red"'),
    ("g", "stroke:CURRENTCOLOR", 'stroke="currentColor"'),
    ("mask", "mask-type:luminance;white-space:pre;frob:url(http://x)", ""),
    ("g", "stroke:INITIAL;fill:unset", 'stroke="none"'),
    ("g", "fill:red;fill:color(display-p3 1 0 0)", 'fill="red"'),
    ("g", "fill:red;fill:rgb(from tan r g b)", 'fill="red"'),
    ("g", "fill:red;fill:url(#g) HSL( FROM tan h s l)", 'fill="red"'),
    ("g", "fill:red;fill:rgb(from var(--a) r g b);stroke:tan;stroke:frob(1)",
     'fill="red" stroke="tan"'),
    ("g", "fill:var(--frob);stroke:var(--frob, tan)", 'stroke="tan"'),
    ("g", "marker:none;marker-mid:inherit",
     'marker-start="none" marker-mid="inherit" marker-end="none"'),
    ("g", "f\\69ll:/*;*/ red /**/;stroke:tan", 'fill="red" stroke="tan"'),
    ("g", " FILL : #F00 ;; stroke:rgb(1,2,3)", 'fill="#F00" stroke="rgb(1,2,3)"'),
    ("g", "isolation:isolate;background:red;mix-blend-mode:screen",
     'style="mix-blend-mode:screen;isolation:isolate"'),
    ("g", "text-decoration-line:none;vector-effect:none;zoom:1;cursor:help", ""),
    ("g", "text-decoration-line:underline;font-variant-caps:small-caps",
     'font-variant="small-caps" text-decoration="underline"'),
    ("g", "-webkit-transform:scale(2)", 'transform="scale(2)"'),
    ("g", "font:italic 700 9px/2 'A B',serif;font-size:8px",
     'font-family="\'A B\',serif" font-size="8px" font-stretch="normal" font-style="italic"'
     ' font-variant="normal" font-weight="700"'),
    ("g", "font-size:8px;font:frob 9px x", 'font-size="8px"'),
    ("g", "stroke-width:2px;opacity:.5;stop-color:red!important;stop-color:tan",
     'opacity=".5" stroke-width="2" stop-color="red"'),
]  # fmt: skip


@pytest.mark.parametrize(("tag", "css", "expected"), PROPERTIES)
def test_properties_become_attributes(tag: str, css: str, expected: str) -> None:
    def attributes(before: str, own: str) -> str:
        reference = "<g mask='url(#m)'><path d='M0 0h9'/></g>" if tag == "mask" else ""
        content = "<path d='M0 0h9'/>" if tag in ("g", "mask") else ""
        result = inner(f"{before}<{tag} id='m' fill='blue' {own}>{content}</{tag}>{reference}")
        start = re.search(rf"<{tag}( [^>]*?)?/?>", result)
        return re.sub(r' (id="a"|fill="blue")', "", start[1] or "") if start else ""

    expected = f" {expected}" if expected else ""
    assert attributes("", f'style="{css}"') == expected
    assert attributes(f"<style>{tag}{{{css}}}</style>", "") == expected


def test_an_attribute_does_not_outlive_the_property_that_replaces_it() -> None:
    assert inner(
        '<path fill="red" transform="scale(2)" style="fill:unset;transform:none" d="M0 0h9"/>'
    ) == (LINE.replace("M", "m"))
    assert inner('<path d="M0 0h9" style="d:none"/>' + LINE) == '<path d="m0 0h9"/>'
    assert inner(
        '<mask id="m" mask-type="alpha" style="mask-type:luminance"><path d="M0 0h9"/></mask>'
        '<path mask="url(#m)" d="M0 0h9"/>'
    ).startswith('<mask id="a"><path')
    assert inner(
        '<mask id="m" mask-type="alpha" style="mask-type:frob"><path d="M0 0h9"/></mask>'
        '<path mask="url(#m)" d="M0 0h9"/>'
    ).startswith('<mask id="a" mask-type="alpha"><path')
    assert inner("<style>rect{rx:auto}</style><rect rx='3' width='9' height='9'/>") == (
        '<rect width="9" height="9"/>'
    )


@pytest.mark.parametrize(
    "css",
    [
        "fill:color(display-p3 1 0 0)",
        "fill:rgb(from red r g b)",
        "stop-color:hsla( FROM red h s l)",
        "stroke-width:calc(1px + 2px)",
        "d:shape(from 0 0, hline to 9px)",
        "text-transform:uppercase",
        "zoom:2",
        "translate:3px",
        "rotate:9deg",
        "scale:2",
        "offset:path('M0 0h9')",
        "all:unset",
        "mask:linear-gradient(red, blue)",
        "-webkit-mask-image:url(#m)",
        "mask:url(#m) alpha",
        "mask:url(#m), url(#n)",
        "text-shadow:1px 1px red",
        "font:var(--f)",
        "transform:translate(10%)",
        "transform:translate(calc(1px))",
        "transform:rotateX(9deg)",
    ],
)
def test_properties_that_no_attribute_holds_are_refused(css: str) -> None:
    assert refusal_reason(f'{HEAD}<path style="{css}" d="M0 0h9"/></svg>') == "unsupported_style"
    sheet = f"<style>.a{{{css}}}</style>"
    assert refusal_reason(f'{HEAD}{sheet}<path class="a" d="M0 0h9"/></svg>') == "unsupported_style"
    assert inner(f"{sheet}{LINE}") == '<path d="m0 0h9"/>'  # a rule that matches nothing


TRANSFORMS = {
    "rotate(90deg) translate(4px,-3px)": "rotate(90) translate(4-3)",
    "ROTATE(.25TURN)": "rotate(90)",
    "rotate(100grad) translateX(1in) translateY(0)": "rotate(90) translate(96) translate(0 0)",
    "scale(50%, 2) scaleX(3) scaleY(-1)": "scale(.5 2) scale(3 1) scale(1-1)",
    "skewX(45deg) skewY(0) skew(45deg)": "skewX(45) skewY(0) matrix(1 0 1 1 0 0)",
    "matrix(1,0,0,2,3,4)": "matrix(1 0 0 2 3 4)",
    "translate3d(1px,2px,0) translateZ(0) rotateZ(3.1415926535rad)":
        "translate(1 2) translate(0) rotate(180)",
    "rotate(9)": "scale(7)",  # invalid: the attribute remains
    "translate(1,2)": "scale(7)",
    "rotate(1deg) frob": "scale(7)",
}  # fmt: skip


@pytest.mark.parametrize(("css", "expected"), TRANSFORMS.items())
def test_transforms_of_css_are_rewritten(css: str, expected: str) -> None:
    result = inner(f'<path transform="scale(7)" style="transform:{css}" d="M0 0h9"/>')
    assert result == f'<path transform="{expected}" d="m0 0h9"/>'


def test_gradients_and_patterns_have_transforms_of_their_own_name() -> None:
    use = '<path fill="url(#g)" d="M0 0h9"/>'
    gradient = f'<linearGradient id="g" style="transform:scale(2)"/>{use}'
    assert inner(gradient).startswith('<linearGradient id="a" gradientTransform="scale(2)"/>')
    pattern = f'<style>pattern{{transform:scale(2)}}</style><pattern id="g">{LINE}</pattern>{use}'
    assert inner(pattern).startswith('<pattern id="a" patternTransform="scale(2)">')


def test_the_root_has_a_background_and_a_size_from_css() -> None:
    line = f"{LINE.replace('M', 'm')}</svg>"
    svg = '<svg xmlns="http://www.w3.org/2000/svg" style="{}">' + f"{LINE}</svg>"
    start = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 256"'
    size = "width:256px;height:256px;"
    assert canonicalise(svg.format(size)) == f"{start}>{line}"
    assert canonicalise(svg.format(f"{size}background:#abc none")) == (
        f'{start} style="background-color:#abc">{line}'
    )
    assert canonicalise(svg.format(f"{size}background:new 0 0 9 9")) == f"{start}>{line}"
    assert refusal_reason(svg.format(f"{size}background:url(x)")) == "unsupported_style"
    coloured = f'{start} style="background-color:tan">{line}'
    for wrong in ("rgb(from red r g b)", "frob(1)", "rgb(1, 2)"):
        fallback = f"{size}background:tan;background:{wrong}"
        assert canonicalise(svg.format(fallback)) == coloured
    assert canonicalise(svg.format(f"{size}--a:tan;background:var(--a)")) == coloured
    for refused in ("rgb(from red r g b)", "frob(1)", "linear-gradient(red, tan)", "var(--a)"):
        css = f"{size}--a:url(x);background:{refused}"
        assert refusal_reason(svg.format(css)) == "unsupported_style"
    relative = HEAD.replace("<svg ", "<svg style='width:100%;height:9vh' ")
    assert canonicalise(f"{relative}{line}") == f"{start}>{line}"


# Variables

VARIABLES = {
    "<path fill='var(--a)' d='M0 0h1'/>": "",
    "<path fill='var(--a, red)' d='M0 0h1'/>": "red",
    "<path fill='var( --a , var(--b,rgb(1, 2, 3)) )' d='M0 0h1'/>": "rgb(1, 2, 3)",
    "<g style='--a:red'><path style='--a:tan' fill='var(--a)' d='M0 0h1'/></g>": "tan",
    "<g style='--a:red'><path style='--a:;fill:var(--a)' fill='tan' d='M0 0h1'/></g>": "",
    "<g style='--A:tan;--a:red'><path style='fill:VAR(--a)' d='M0 0h1'/></g>": "red",
    "<style>:root{--a:var(--b);--b:var(--c, red)}path{fill:var(--a)}</style>" + LINE: "red",
    "<style>*{--a:var(--b);--b:var(--a)}path{fill:var(--a,tan)}</style>" + LINE: "tan",
    "<style>svg{--r:9}path{fill:rgb(var(--r),0,0)}</style>" + LINE: "rgb(9,0,0)",
    "<style>path{--a:red!important;--a:tan;fill:var(--a)}</style>" + LINE: "red",
    "<style>path{fill:red;fill:var(--a)}</style>" + LINE: "",  # invalid only when it is computed
}


@pytest.mark.parametrize(("body", "fill"), VARIABLES.items())
def test_variables_are_replaced(body: str, fill: str) -> None:
    assert fills(body) == [fill]


def test_a_variable_that_a_use_element_sets_is_refused() -> None:
    symbol = "<symbol id='s'><path fill='var(--a)' d='M0 0h1'/></symbol>"
    set_for_use = f"{HEAD}{symbol}<use href='#s' style='--a:red'/></svg>"
    assert refusal_reason(set_for_use) == "unsupported_style"
    assert fills(f"<style>svg{{--a:red}}</style>{symbol}<use href='#s'/>") == ["red"]


# White space

SPACES = {
    "<text xml:space='preserve'>a  b</text>": "<text xml:space=\"preserve\">a  b</text>",
    "<g xml:space='preserve'><g><text>a  b</text></g></g>":
        "<text xml:space=\"preserve\">a  b</text>",
    "<g xml:space='preserve'><text xml:space='default'>a  b</text></g>": "<text>a  b</text>",
    "<g xml:space='preserve'><text>a b</text></g>": "<text>a b</text>",
    "<text xml:space='preserve'>a <tspan xml:space='default'> b</tspan></text>":
        '<text xml:space="preserve">a <tspan xml:space="default"> b</tspan></text>',
    "<text style='white-space:pre'>a  b</text>": '<text xml:space="preserve">a  b</text>',
    "<g style='white-space:break-spaces'><text xml:space='default'>a  b</text></g>":
        "<text>a  b</text>",
    "<text xml:space='preserve' style='white-space:nowrap'>a  b</text>": "<text>a  b</text>",
    "<style>text{white-space-collapse:preserve}</style><text> a</text>":
        '<text xml:space="preserve"> a</text>',
    "<text xml:space='preserve'>a&#13;b</text>": "<text>a b</text>",
}  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), SPACES.items())
def test_white_space_is_inherited_and_written_where_it_counts(body: str, expected: str) -> None:
    assert re.sub("</?g>", "", inner(body)) == expected
