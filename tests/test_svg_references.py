"""References inside of drawings: spellings of ids, fallbacks, switches and removed targets."""

import pytest

from data_pipeline.svg import canonicalise
from tests.drawings import HEAD, LINE, fills, inner, refusal_reason

GRADIENT = '<linearGradient id="{}"><stop stop-color="red"/></linearGradient>'
FOUND = {
    "a": ["url(#a)", "url('#a')", 'url( "#a" )', "URL(#a)", "url(#%61)", "u\\72l(#a)"],
    "a b": ["url('#a b')", "url(#a%20b)", "url(#a\\ b)", 'url("#a%20b")'],
    "a%20b": ["url(#a%20b)", "url(#a b)".replace(" ", "%20")],
    "g(1)": ['url("#g(1)")', "url(#g\\(1\\))", "url(#g%281%29)"],
    "é": ["url(#é)", "url(#%C3%A9)", "url('#é')", "url(#\\e9)"],
    "a'b": ['url("#a\'b")', "url(#a\\'b)", "url(#a%27b)"],
    "100%": ["url(#100%)", "url(#100%25)"],
    "a:b/c": ["url(#a:b/c)", "url(#a%3Ab%2Fc)"],
}


@pytest.mark.parametrize(
    ("name", "address"), [(name, address) for name in FOUND for address in FOUND[name]]
)
def test_an_id_is_found_in_every_spelling_of_its_address(name: str, address: str) -> None:
    gradient = GRADIENT.format(name)
    expected = GRADIENT.format("a") + '<path fill="url(#a)" d="m0 0h9"/>'
    quoted = address.replace('"', "&quot;")
    assert inner(f'{gradient}<path fill="{quoted}" d="M0 0h9"/>') == expected
    assert inner(f'{gradient}<path style="fill:{quoted}" d="M0 0h9"/>') == expected
    assert inner(f"{gradient}<style>path{{fill:{address}}}</style>{LINE}") == expected


@pytest.mark.parametrize(("name", "href"), [("a b", "#a b"), ("é", "#%C3%A9"), ("a", " #a ")])
def test_a_fragment_is_found_in_every_spelling(name: str, href: str) -> None:
    assert inner(f'<path id="{name}" d="M0 0h9"/><use href="{href}"/>') == (
        '<path id="a" d="m0 0h9"/><use href="#a"/>'
    )


@pytest.mark.parametrize(
    ("value", "fill"),
    [
        ("url(#a)red", "url(#a) red"),
        ("url('#a') rgb(1, 2, 3)", "url(#a) rgb(1, 2, 3)"),
        ("url(#gone) red", "red"),
        ("url('#g o n e') rgb(1 2 3 / 50%)", "rgb(1 2 3 / 50%)"),
        ("url(#gone)", "none"),
        ("url(x.svg#a) #f00", "#f00"),
        ("url('http://x/#a') red", "red"),
        ("url(http://x/#a)", ""),
        ("url(http://x/#a) url(#a)", ""),
        ("url(#a b)", ""),  # invalid without quotes
    ],
)
def test_a_fallback_colour_takes_the_place_of_a_missing_target(value: str, fill: str) -> None:
    assert fills(f'{GRADIENT.format("a")}<path fill="{value}" d="M0 0h9"/>') == [fill]


def test_every_reference_of_a_list_is_renamed() -> None:
    filters = '<filter id="x y"><feFlood/></filter><filter id="z"><feOffset/></filter>'
    body = f"{filters}<path filter=\"url('#x y') url(#z)\" d='M0 0h9'/>"
    assert inner(body).endswith('<path filter="url(#a) url(#b)" d="m0 0h9"/>')


@pytest.mark.parametrize("href", ["#gone", "http://x/y.png", "data:,x", "#empty"])
def test_a_missing_picture_of_a_filter_is_transparent(href: str) -> None:
    picture = f'<feImage href="{href}" x="3" result="p"/>'
    body = f'<filter id="f">{picture}<feFlood/><feBlend in2="p"/></filter><g id="empty"/>'
    assert inner(f'{body}<path filter="url(#f)" d="M0 0h9"/>') == (
        '<filter id="a"><feFlood result="a" flood-opacity="0"/><feFlood/><feBlend in2="a"/>'
        "</filter>"
        '<path filter="url(#a)" d="m0 0h9"/>'
    )


def test_chains_of_unused_elements_are_removed_whole() -> None:
    chain = "".join(f'<g><use id="u{n}" href="#u{n + 1}"/></g>' for n in range(300))
    assert inner(chain + LINE) == '<path d="m0 0h9"/>'
    endless = "".join(f'<use id="u{n}" href="#u{n + 1}"/>' for n in range(20_000))
    assert refusal_reason(f"{HEAD}{endless}{LINE}</svg>") == "too_many_elements"


# Choices

PATHS = {n: f'<path d="M0 0h{n}"/>' for n in range(1, 5)}
SWITCHES = {
    f"<switch>{PATHS[1]}{PATHS[2]}</switch>": "1",
    f"<switch><g systemLanguage='de'>{PATHS[1]}</g>{PATHS[2]}</switch>": "2",
    f"<switch><g systemLanguage='de, en-GB'>{PATHS[1]}</g>{PATHS[2]}</switch>": "1",
    f"<switch><g systemLanguage=''>{PATHS[1]}</g>{PATHS[2]}</switch>": "2",
    f"<switch><g requiredExtensions='x'>{PATHS[1]}</g><g>{PATHS[2]}</g>{PATHS[3]}</switch>": "2",
    f"<switch><g/>{PATHS[1]}</switch>{PATHS[2]}": "2",
    f"<switch><title>x</title><g><title>x</title></g>{PATHS[1]}</switch>{PATHS[2]}": "2",
    f"<switch><g systemLanguage='en'/>{PATHS[1]}</switch>{PATHS[2]}": "2",
    f"<switch><foreignObject><p/></foreignObject><a>{PATHS[1]}</a>{PATHS[2]}</switch>": "1",
    f"<switch><switch>{PATHS[1]}{PATHS[2]}</switch>{PATHS[3]}</switch>{PATHS[4]}": "1 4",
    f"<switch><defs><g id='g'>{PATHS[1]}</g></defs><use href='#g'/>{PATHS[2]}</switch>": "1",
    f"<g systemLanguage='fr'>{PATHS[1]}</g><g systemLanguage='en'>{PATHS[2]}</g>": "2",
}


@pytest.mark.parametrize(("body", "lengths"), SWITCHES.items())
def test_a_switch_is_its_first_child_for_a_reader_of_english(body: str, lengths: str) -> None:
    result = inner(body)
    assert [part.partition('"')[0] for part in result.split("m0 0h")[1:]] == lengths.split()
    assert "switch" not in result
    assert "systemLanguage" not in result


def test_a_drawing_of_another_language_only_is_refused_as_empty() -> None:
    assert refusal_reason(f'{HEAD}<g systemLanguage="ja">{LINE}</g></svg>') == "empty"
    assert refusal_reason(f"{HEAD}<switch><g/>{LINE}</switch></svg>") == "empty"
    assert canonicalise(f"{HEAD}<switch>{LINE}</switch></svg>").count("<path") == 1
