"""Style sheets of drawings: the cascade, selectors, media and types."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.svg.style.css import parse_style
from tests.drawings import HEAD, LINE, fills, refusal_reason

XLINK = 'xmlns:xlink="http://www.w3.org/1999/xlink"'


# The cascade

SELECTORS = {
    "*": (0, 0, 0),
    "path": (0, 0, 1),
    ".c": (0, 1, 0),
    "path.c": (0, 1, 1),
    "#i": (1, 0, 0),
}
rules = st.lists(st.tuples(st.sampled_from([*SELECTORS]), st.booleans()), max_size=6)
styles = st.lists(st.booleans(), max_size=2)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(rules, styles, st.booleans(), st.booleans())
def test_the_strongest_declaration_wins(
    sheet: list[tuple[str, bool]], style: list[bool], has_attribute: bool, is_split: bool
) -> None:
    """Importance is compared first, then the style attribute, specificity and order."""
    declared = [(False, -1, (0, 0, 0), -1)] if has_attribute else []
    declared += [(mark, 0, SELECTORS[name], order) for order, (name, mark) in enumerate(sheet)]
    declared += [(mark, 1, (0, 0, 0), 100 + order) for order, mark in enumerate(style)]
    bang = {True: " !important", False: ""}
    texts = [f"{name}{{fill:#{order:03}{bang[mark]}}}" for order, (name, mark) in enumerate(sheet)]
    css = ("</style><style>" if is_split else "").join(texts)
    own = ";".join(f"fill:#{100 + order}{bang[mark]}" for order, mark in enumerate(style))

    attribute = 'fill="#-1"' if has_attribute else ""
    body = f'<style>{css}</style><path id="i" class="c" style="{own}" {attribute} d="M0 0h9"/>'
    winner = max(declared, default=None)
    expected = "" if winner is None else "#-1" if winner[1] < 0 else f"#{winner[3]:03}"
    assert fills(body) == [expected]


# Selectors: each names the paths of this drawing that it must match.

TREE = f"""
    <title>t</title><path id="p1" class="a b" d="M0 0h1"/>
    <g id="g1" class="a"><path id="p2" fill="tan" d="M0 0h1"/><path id="p3" class="b" d="M0 0h1"/>
    <a href="x" id="l1"><path id="p4" d="M0 0h1"/></a></g>
    <a {XLINK} xlink:href="y" id="l2"><g><path id="p5" data-x="k-1" d="M0 0h1"/></g></a>
    <metadata/><path id="p6" d="M0 0h1"/>
"""
MATCHES = {
    "g > path": "2 3 5",
    "svg>path": "1 6",
    "a path": "4 5",
    "a>path": "4",
    "g path": "2 3 4 5",
    "a:link path": "4 5",
    "a:visited path, a:hover path": "",
    ":any-link > path": "4",
    "[href] path": "4",
    "path[fill]": "2",
    '[data-x|="k"]': "5",
    '[data-x^="k"], [class~="b"], [fill$="an"], [id*="6"]': "1 2 3 5 6",
    '[fill="TAN" i]': "2",
    "path:first-child": "2 4 5",
    "path:last-child": "4 5 6",
    "path:only-child": "4 5",
    "path:first-of-type": "1 2 4 5",
    "path:nth-child(2)": "3",
    "path:nth-of-type(2n)": "3 6",
    "path:nth-last-child(1)": "4 5 6",
    "title + path": "1",
    "path ~ path": "3 6",
    "path + path": "3",
    ":root > path": "1 6",
    "path:not(.b)": "2 4 5 6",
    "path:not(:hover)": "1 2 3 4 5 6",
    "path:is(.b, #p4)": "1 3 4",
    ":where(g, a) > :where(path)": "2 3 4 5",
    "g:has(> .b) > #p2": "2",
    ".a.b, .a .b": "1 3",
    ".a .a": "",
    "#g1 .b": "3",
    "PATH": "",
    "path::before, path:hover, #p\\36": "6",
    "/* x */ path /* y */ ~ /* z */ path": "3 6",
}


@pytest.mark.parametrize(("selector", "numbers"), MATCHES.items(), ids=MATCHES.keys())
def test_selectors_match_the_elements_of_the_source(selector: str, numbers: str) -> None:
    selector = selector.replace(">", "&gt;")
    found = fills(f"<style>{selector}{{fill:red}}</style>{TREE}")
    assert [str(i + 1) for i, fill in enumerate(found) if fill == "red"] == numbers.split()


def test_namespaces_of_selectors_are_prefixes_or_the_default() -> None:
    svg = "http://www.w3.org/2000/svg"
    prefixed = f"@namespace s url({svg}); s|path{{fill:red}} |path{{fill:blue}}"
    default = f"@namespace '{svg}'; path{{fill:red}}"
    other = "@namespace 'http://www.w3.org/1999/xhtml'; path{fill:red}"
    assert [fills(f"<style>{css}</style>{LINE}") for css in (prefixed, default, other)] == [
        ["red"],
        ["red"],
        [""],
    ]


@pytest.mark.parametrize(
    "css",
    [
        "path:frob{fill:red}",
        "x|path{fill:red}",
        "[*|href]{fill:red}",
        "a:local-link{fill:red}",
        "@layer a{path{fill:red}}",
        "@supports (fill:red){path{fill:red}}",
        "@media (max-width:99px){path{fill:red}}",
        "path{fill:red;&amp;:hover{fill:blue}}",
    ],
)
def test_rules_that_cannot_be_applied_are_refused(css: str) -> None:
    assert refusal_reason(f"{HEAD}<style>{css}</style>{LINE}</svg>") == "unsupported_style"


def test_invalid_and_irrelevant_css_is_ignored_as_in_browsers() -> None:
    css = """
        <!-- frob; } @font-face{src:url(data:font/x;base64,AA;BB)} @keyframes k{to{fill:blue}}
        @import url(https://x/css?family=A:wght@400;700); @import "https://x/y;z" screen;
        path:frob{cursor:help;animation:k 1s} path{fill:red;*zoom:1;stroke;:;frob:url(;)} -->
    """
    css = css.replace("<", "&lt;").replace("frob; }", "")
    assert fills(f"<style>{css}</style>{LINE}") == ["red"]


# Media and types of sheets

MEDIA = {
    "": True,
    "screen": True,
    "all": True,
    "print": False,
    "print, SCREEN": True,
    "not print": True,
    "not screen": False,
    "only screen and (prefers-color-scheme: light)": True,
    "(prefers-color-scheme:dark)": False,
    "not (prefers-color-scheme:dark)": True,
    "(prefers-color-scheme)": True,
    "(prefers-reduced-motion)": False,
    "(hover) and (pointer:fine)": True,
    "print or (hover)": True,
    "(not (hover)) or ((update:fast) and (forced-colors:none))": True,
    "(frob)": False,
    "not (frob)": False,
    "(frob) or (hover:hover)": True,
    "screen and": False,
    "not not print": False,
}


@pytest.mark.parametrize(("query", "applies"), MEDIA.items())
def test_media_queries_are_those_of_a_light_screen(query: str, applies: bool) -> None:
    rule = "path{fill:red}"
    expected = ["red" if applies else ""]
    assert fills(f"<style>@media {query}{{{rule}}}</style>{LINE}") == expected
    assert fills(f'<style media="{query}">{rule}</style>{LINE}') == expected
    nested = f"@media screen{{@media {query}{{{rule}}}}}"
    assert fills(f"<style>{nested}</style>{LINE}") == expected


@pytest.mark.parametrize(
    ("attribute", "fill"),
    [
        ("", "red"),
        ("type=''", "red"),
        ("type='text/css'", "red"),
        ("type=' TEXT/CSS '", "red"),
        ("type='text/plain'", ""),
        ("type='text/less'", ""),
    ],
)
def test_only_sheets_of_css_are_applied(attribute: str, fill: str) -> None:
    assert fills(f"<style {attribute}>path{{fill:red}}</style>{LINE}") == [fill]


# Invalid values, by the grammars of CSS: browsers ignore the declaration

VALUES = {
    "fill": (["RED", "#12f", "#1234", "none", "currentColor", "context-stroke"], "foo", "#12"),
    "stroke": (
        ["rgb(1 2 3)", "RGBA(10% 2 5 / .5)", "hsl(9deg, 1%, 2%)",
         "url(#a) red", "#f00 icc-color(a)"],
        "rgb(1, 2)", "rgb(1, 2%, 3, 4, 5)", "blur(3)", "hsl(red)",
    ),
    "color": (["red", "CanvasText", "transparent"], "none", "'red'", "url(#a)", "rgba()"),
    "stroke-width": (["2px", ".5", "1e-3em", "0", "7%"], "-3", "2 px", "2pixels", "x"),
    "stroke-dasharray": (["none", "5", "5 , 3", "5,3 2%"], "foo", "5-3", "5 -3", "5,,3"),
    "stroke-dashoffset": (["-3", "2mm"], "2 2"),
    "opacity": ([".3", "30%", "1"], "x", "30 %", "rgb(1, 2, 3)"),
    "visibility": (["hidden", "Collapse"], "gone"),
    "display": (["none", "inline-block", "inline flow"], "foo", "none foo"),
    "stroke-linecap": (["round", "INHERIT", "unset"], "rounded"),
}  # fmt: skip
"""Property → its valid values, and invalid ones."""


@pytest.mark.parametrize("name", VALUES)
def test_an_invalid_declaration_leaves_the_one_before_it(name: str) -> None:
    valid, *invalid = VALUES[name]
    for value in valid:
        assert [each.value for each in parse_style(f"{name}:{value}")] == [value]
        for wrong in invalid:
            assert parse_style(f"{name}:{value};{name}:{wrong}") == parse_style(f"{name}:{value}")
            assert parse_style(f"{name}:{wrong}") == ()


def test_an_invalid_declaration_of_a_sheet_leaves_the_attribute() -> None:
    body = '<style>path{fill:foo;fill:#12}</style><path fill="red" d="M0 0h9v9"/>'
    assert fills(body) == ["red"]


def test_a_long_value_is_judged_in_linear_time() -> None:
    spaces = " " * 50_000
    assert parse_style(f"stroke-dasharray:1{spaces}x") == ()
