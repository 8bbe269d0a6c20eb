"""XML reading: encodings, entities, gzip, and limits on hostile input."""

import contextlib
import gzip

import pytest

from data_pipeline.svg import SVGRefused, canonicalise
from tests.drawings import HEAD, LINE, doctype, inner, refusal_reason

PLAIN = f"{HEAD}<text>é</text></svg>"
DECLARED = '<?xml version="1.0" encoding="{}"?>'
LATIN_1 = DECLARED.format("iso-8859-1")
LAUGHS = '<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("body", ["<text>&i;</text>", '<path id="&i;" d="M0 0h1"/>'])
def test_a_billion_laughs_are_refused_at_once(body: str) -> None:
    assert refusal_reason(doctype(LAUGHS, body)) == "entities"


@pytest.mark.parametrize(
    "svg",
    [
        LATIN_1 + PLAIN,  # a str is already decoded
        (LATIN_1 + PLAIN).encode("latin-1"),
        PLAIN.encode("utf-16"),
        f"\ufeff\n {PLAIN}",
        f'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://x/svg11.dtd">{PLAIN}',
        PLAIN.replace("<svg", "<s:svg").replace("</svg", "</s:svg").replace("xmlns=", "xmlns:s="),
    ],
    ids=[
        "text with a declaration",
        "latin-1",
        "utf-16",
        "byte order mark",
        "doctype",
        "prefixed root",
    ],
)
def test_encodings_and_prologues_are_read(svg: str | bytes) -> None:
    if isinstance(svg, str) and "<s:svg" in svg:
        svg = svg.replace("<text", "<s:text").replace("</text", "</s:text")
    assert canonicalise(svg).endswith("<text>é</text></svg>")


ADOBE = (
    '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.0//EN" "x.dtd" '
    '[<!-- > --> <!ENTITY ns "http://www.w3.org/2000/svg">]>'
)


@pytest.mark.parametrize(
    ("svg", "text"),
    [
        (f"{ADOBE}<svg xmlns='&ns;' viewBox='0 0 9 9'><text>a&amp;b</text></svg>", "a&amp;b"),
        (f"<!DOCTYPE svg [<!ENTITY a '\"b'>]>{HEAD}<text fill='&a;'>&a;c</text></svg>", "&quot;bc"),
        (
            f"<!DOCTYPE svg [<!ELEMENT svg ANY><!ENTITY a 'b'>]>{HEAD}<text>&a;&a;</text></svg>",
            "bb",
        ),
    ],
)
def test_plain_entities_are_expanded(svg: str, text: str) -> None:
    result = canonicalise(svg)
    assert f">{text}</text>" in result
    assert "<!" not in result


@pytest.mark.parametrize(
    ("declarations", "attributes"),
    [
        ('<!ATTLIST path fill CDATA "red">', 'fill="red" '),
        ('<!ATTLIST path fill (red|tan) "tan" id ID #IMPLIED>', 'fill="tan" '),
        ('<!ATTLIST path fill CDATA #FIXED "red" stroke CDATA "tan">', 'fill="red" stroke="tan" '),
        ('<!ATTLIST path fill CDATA "red"><!ATTLIST path fill CDATA "tan">', 'fill="red" '),
        ('<!ATTLIST path style CDATA "fill:red">', 'fill="red" '),
        ('<!ATTLIST path class CDATA "c">', 'stroke="blue" '),
        ('<!ENTITY r "#f00"><!ATTLIST path fill CDATA "&r;">', 'fill="#f00" '),
        ('<!ENTITY r "x"><!-- <!ATTLIST path fill CDATA "red"> -->', ""),
        ('<!ATTLIST path onload CDATA "x()" href CDATA "http://x/">', ""),
    ],
)
def test_declared_defaults_of_attributes_count(declarations: str, attributes: str) -> None:
    style = "<style>.c{stroke:blue}</style>"
    result = canonicalise(doctype(declarations, style))
    assert result.split("<path ")[1] == f'{attributes}d="m0 0h9"/></svg>'
    given = doctype(declarations, f'{style}<path class="" style="" fill="#abc" d="M0 0h1"/>')
    assert 'fill="#abc" ' in canonicalise(given)


def test_defaults_of_attributes_are_short() -> None:
    """Each element may repeat them."""
    assert refusal_reason(doctype(f'<!ATTLIST path a CDATA "{"x" * 1000}">', LINE)) == "entities"
    many = "".join(f'<!ATTLIST path a{n} CDATA "">' for n in range(400))
    assert refusal_reason(doctype(many, LINE)) == "entities"
    long_list = "|".join(f"a{n}" for n in range(1000))
    assert canonicalise(doctype(f'<!ATTLIST path a ({long_list}) "a1">', ""))


def test_entities_expand_within_bounds() -> None:
    long = doctype(f'<!ENTITY a "{"b" * 1000}">', f"<text>{'&a;' * 101}</text>")
    many = doctype('<!ENTITY a "b">', f"<text>{'&a;' * 1001}</text>")
    numerous = doctype("".join(f'<!ENTITY a{n} "b">' for n in range(65)), "")
    assert [refusal_reason(svg) for svg in (long, many, numerous)] == ["entities"] * 3
    assert "b" * 100_000 in canonicalise(
        doctype(f'<!ENTITY a "{"b" * 1000}">', f"<text>{'&a;' * 100}</text>")
    )


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("utf8", "utf-8"),
        ("UTF_8", "utf-8"),
        ("ucs2", "utf-8"),
        ("latin1", "latin-1"),
        ("ISO8859-1", "latin-1"),
        ("l1", "latin-1"),
        ("cp-1252", "cp1252"),
        ("Windows1251", "cp1251"),
        ("x-sjis", "shift_jis"),
        ("Macintosh", "mac-roman"),
        ("KOI8_R", "koi8-r"),
    ],
)
def test_common_names_of_encodings_are_known(declared: str, encoding: str) -> None:
    letter = {"latin-1": "é", "cp1252": "é", "mac-roman": "é", "utf-8": "é"}.get(encoding, "Я")
    plain = PLAIN.replace("é", letter)
    svg = (DECLARED.format(declared) + plain).encode(encoding)
    assert f"<text>{letter}</text>" in canonicalise(svg)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_are_detected_by_their_first_bytes(encoding: str) -> None:
    assert canonicalise(PLAIN.encode(encoding)) == canonicalise(PLAIN)


@pytest.mark.parametrize(
    "encoding", ["UTF-8", "windows-1252", "ISO-8859-15", "cp437", "mac-roman", "gb18030"]
)
def test_declared_encodings_are_decoded(encoding: str) -> None:
    assert canonicalise((DECLARED.format(encoding) + PLAIN).encode(encoding)) == canonicalise(PLAIN)


def test_a_declaration_of_utf_16_in_single_bytes_is_ignored() -> None:
    assert canonicalise((DECLARED.format("utf-16") + PLAIN).encode()) == canonicalise(PLAIN)


@pytest.mark.parametrize(
    "encoding", ["zip", "punycode", "idna", "unicode_escape", "utf-7", "rot13", "no-such"]
)
def test_codecs_that_are_no_character_sets_are_refused(encoding: str) -> None:
    assert refusal_reason((DECLARED.format(encoding) + PLAIN).encode()) == "bad_encoding"


def test_bytes_that_are_not_in_their_encoding_are_refused() -> None:
    assert refusal_reason(PLAIN.encode("latin-1")) == "bad_encoding"


def test_gzip_is_unpacked_within_bounds() -> None:
    packed = gzip.compress(PLAIN.encode())
    assert canonicalise(packed) == canonicalise(PLAIN)
    assert refusal_reason(gzip.compress(b" " * 4_000_001)) == "too_large"
    assert refusal_reason(packed[:-9]) == "bad_gzip"
    assert refusal_reason(packed[:12] + b"\xff" * 9 + packed[21:]) == "bad_gzip"
    assert refusal_reason(gzip.compress(packed)) == "bad_encoding"  # one layer only


def test_gzip_in_several_members_is_one_document() -> None:
    data = PLAIN.encode()
    members = [gzip.compress(data[start : start + 40]) for start in range(0, len(data), 40)]
    assert len(members) > 1
    packed = b"".join(members)
    assert canonicalise(packed) == canonicalise(PLAIN)
    assert canonicalise(packed + bytes(512)) == canonicalise(PLAIN)  # padding of a tape
    assert refusal_reason(packed[:-9]) == "bad_gzip"
    assert refusal_reason(gzip.compress(b" " * 3_000_000) * 2) == "too_large"
    assert refusal_reason(gzip.compress(b"") * 100_000) == "bad_gzip"


def test_deep_and_large_documents_are_refused() -> None:
    assert refusal_reason(f"{HEAD}{'<g>' * 200}{LINE}{'</g>' * 200}</svg>") == "too_deep"
    assert refusal_reason(f"{HEAD}{'<g>' * 5000}{LINE}{'</g>' * 5000}</svg>") == "too_deep"
    assert refusal_reason(f"{HEAD}{'<g/>' * 50_000}{LINE}</svg>") == "too_many_elements"
    assert (
        refusal_reason(f"{HEAD}<style>{'*{fill:red}' * 400}</style>{LINE * 3000}</svg>")
        == "too_many_elements"
    )
    assert (
        refusal_reason(f"{HEAD}<metadata>{'<x/>' * 50_000}</metadata>{LINE}</svg>")
        == "too_many_elements"
    )
    assert (
        refusal_reason(f"{HEAD}<metadata>{'<x>' * 200}{'</x>' * 200}</metadata>{LINE}</svg>")
        == "too_deep"
    )
    attributes = " ".join(f"a{n}=''" for n in range(256))
    assert refusal_reason(f"{HEAD}<path d='M0 0h9' {attributes}/></svg>") == "too_many_attributes"
    group = '<g opacity=".5">'
    assert inner(f"{group * 198}{LINE}{'</g>' * 198}").count("<g") == 198


MANY = 100_000
VARIABLES = "".join(f"--v{n}:{f'var(--v{n + 1})' * 9};" for n in range(MANY // 9))
NESTED = f"{'<g>' * 190}{LINE * 9}{'</g>' * 190}"
LARGE = {
    "digits": f"<path d='M0 0h{'1' * 9 * MANY}'/>",
    "digits of an arc": f"<path d='M0 0a{'1' * 9 * MANY}'/>",
    "zeros": f"<path d='M0 0h{'0' * 9 * MANY}9'/>",
    "spaces": f"<path d='M0 0{' ' * 9 * MANY}h9'/>",
    "arcs": f"<path d='M0 0{'a1 1 0 019 0' * (MANY // 2)}'/>",
    "a length": f"<rect width='{'1' * 9 * MANY}x' height='1'/>",
    "dashes": f"{LINE}<g stroke-dasharray='{'1 ' * 4 * MANY}x'>{LINE}</g>",
    "a transform": f"<g transform='{'scale(' * MANY}'>{LINE}</g>",
    "a url": f"<path fill='{'url(' * MANY}#' d='M0 0h9'/>",
    "a sheet": f"<style>{'a' * 9 * MANY}</style>{LINE}",
    "fonts": f"<style>{'@font-face ' * (MANY // 2)}</style>{LINE}",
    "open fonts": f"<style>{'@font-face{' * (MANY // 2)}</style>{LINE}",
    "rules": f"<style>{'a{}' * MANY}</style>{LINE}",
    "comments": f"<style>{'/*' * 4 * MANY}</style>{LINE}",
    "selectors": f"<style>{','.join(['path'] * MANY)}{{fill:red}}</style>{LINE}",
    "ancestors": f"<style>.a {'g ' * 20}path{{x:y;fill:red}}</style>{NESTED}",
    "siblings": f"<style>.a~path~path~path{{fill:red}}</style>{LINE * (MANY // 3)}",
    "relatives": f"<style>:has(:has(:has(.a))){{fill:red}}</style>{NESTED}",
    "kinds": f"<style>path:nth-of-type(2n){{fill:red}}</style>{LINE * (MANY // 3)}",
    "negations": f"<style>{':not(' * MANY}</style>{LINE}",
    "media": f"<style>@media {'not ' * (MANY // 2)}print{{}}</style>{LINE}",
    "a style": f"<path style='{'fill:(;' * MANY}' d='M0 0h9'/>",
    "declarations": f"<path style='{'fill:red;' * MANY}fill:blue' d='M0 0h9'/>",
    "fallbacks": f"<path style='fill:red;{'fill:lab(1);r:1px;' * MANY}' d='M0 0h9'/>",
    "styles": f"<path style='{'fill:url(1);' * (MANY // 2)}' d='M0 0h9'/>",
    "variables": f"<g style='{VARIABLES}' fill='var(--v0)'>{LINE}</g>",
    "variable": f"<path fill='{'var(--a,' * MANY}' d='M0 0h9'/>",
    "attributes": "<path d='M0 0h9' " + " ".join(f"a{n}='1'" for n in range(MANY // 2)) + "/>",
    "groups": f"{'<g>' * 200}{LINE * (MANY // 4)}{'</g>' * 200}",
}


@pytest.mark.parametrize("body", LARGE.values(), ids=LARGE.keys())
def test_large_inputs_take_linear_time(body: str) -> None:
    """Assert only that the call ends: quadratic time would be hours."""
    with contextlib.suppress(SVGRefused):
        canonicalise(f"{HEAD}{body}</svg>")
