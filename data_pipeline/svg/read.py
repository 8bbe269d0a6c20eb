"""Hostile bytes → XML elements of bounded size: gzip, encodings, document types, entities. Knows no drawing.

Nothing outside of the bytes is ever read, and nothing in them can grow: what unpacks, expands, nests or repeats
without bound is refused by name.
"""

import codecs
import re
import zlib
from collections.abc import Iterable
from typing import Protocol
from xml.parsers import expat

MAX_ENTITIES = 64
MAX_EXPANSIONS = 1_000
MAX_EXPANDED = 100_000  # characters

_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    b"<\0": "utf-16-le",
    b"\0<": "utf-16-be",
}
_MARKS = tuple(_BOMS)
_DECLARATION = re.compile(r"\s*<\?xml\b([^>]*)\?>")
_ENCODING = re.compile(r"""encoding\s*=\s*["']([\w.:-]+)["']""")
# Python knows codecs that are no character sets, and some that take quadratic time.
_CHARACTER_SETS = re.compile(
    r"utf-?8|us-ascii|ascii|latin-?1|iso-?8859-\d+|windows-\d+|cp\d+|koi8-[ru]|big5|gb\w+|euc-\w+|shift_jis|mac[\w-]*"
)
_SUBSET = re.compile(
    r"""<!DOCTYPE\s[^\[<>]*+\[((?:[^<>\]"'%]++|<!--(?:[^-]|-(?!->))*+-->|<!(?:[^<>"']|"[^"]*+"|'[^']*+')*+>)*+)\]\s*>"""
)
_ENTITY = re.compile(r"""<!ENTITY\s+([\w:.-]+)\s+(?:"([^"&%<]*)"|'([^'&%<]*)')\s*>""")
_REFERENCE = re.compile(r"&([\w:.-]+);")
_XLINK = re.compile(
    r"""xmlns:xlink\s*=\s*("&[^"]*"|'&[^']*')"""
)  # `&#38;ns_xlink;`: converters do it


class SVGRefused(ValueError):
    """This drawing does not enter the corpus: `reason` is a short stable name, `detail` a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Handler(Protocol):
    """What is told of the elements, in document order. Names are `uri local`, or `local` outside of namespaces."""

    def start(self, name: str, attributes: dict[str, str]) -> None: ...

    def end(self, name: str) -> None: ...

    def text(self, text: str) -> None: ...


def read_xml(svg: str | bytes, handler: Handler, *, texts: Iterable[str], max_bytes: int) -> None:
    """Tells the handler what the document holds, comments and processing instructions left out. Only text inside of
    elements called one of `texts` counts: where there are none, it may be told of none.

    Raises SVGRefused: `too_large`, `bad_gzip`, `bad_encoding`, `entities`, `not_xml`.
    """
    text = svg if isinstance(svg, str) else _decode(_unzip(svg, max_bytes))
    if len(text) > max_bytes:
        raise SVGRefused("too_large", f"{len(text):,} characters, more than {max_bytes:,}")
    text = text.lstrip("\ufeff \t\r\n")
    if text.startswith("<?") and (
        declaration := _DECLARATION.match(text)
    ):  # it was decoded already
        text = text[declaration.end() :].lstrip()
    if "<!ENTITY" in text:
        text = _expand(text)
    if "&" in text:
        text = _XLINK.sub('xmlns:xlink="http://www.w3.org/1999/xlink"', text)
    parser = expat.ParserCreate("utf-8", " ", None)
    parser.specified_attributes = True
    parser.StartElementHandler = handler.start
    parser.EndElementHandler = handler.end
    if any(name in text for name in texts):
        parser.buffer_text = True
        parser.buffer_size = 1 << 16
        parser.CharacterDataHandler = handler.text
    parser.EntityDeclHandler = _refuse_entity
    try:
        parser.Parse(text.encode("utf-8", "surrogatepass"), True)
    except expat.ExpatError as error:
        raise SVGRefused("not_xml", str(error)) from None


def _refuse_entity(*_: object) -> None:
    raise SVGRefused(
        "entities", "the document declares entities that are external, nested or not plain text"
    )


def _unzip(data: bytes, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise SVGRefused("too_large", f"{len(data):,} bytes, more than {max_bytes:,}")
    if not data.startswith(b"\x1f\x8b"):
        return data
    unzip = zlib.decompressobj(wbits=31)  # 31: gzip
    try:
        plain = unzip.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise SVGRefused("bad_gzip", str(error)) from None
    if len(plain) > max_bytes:
        raise SVGRefused("too_large", f"more than {max_bytes:,} bytes when unpacked")
    if not unzip.eof:
        raise SVGRefused("bad_gzip", f"the compressed data ends after {len(plain):,} bytes")
    return plain


def _decode(data: bytes) -> str:
    """By the byte order mark, else by the XML declaration, else as UTF-8."""
    encoding = "utf-8"
    if data.startswith(_MARKS):
        encoding = next(name for mark, name in _BOMS.items() if data.startswith(mark))
    elif b"encoding" in data[:200] and (
        declaration := _DECLARATION.match(data[:200].decode("latin-1"))
    ):
        declared = _ENCODING.search(declaration[1])
        encoding = declared[1].lower() if declared else "utf-8"
        if encoding.startswith(("utf-16", "utf-32", "ucs-")):  # then it would have been unreadable
            encoding = "utf-8"
        if not _CHARACTER_SETS.fullmatch(encoding):
            raise SVGRefused("bad_encoding", f"encoding {encoding[:40]!r}")
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise SVGRefused("bad_encoding", str(error)[:200]) from None


def _expand(text: str) -> str:
    """Without the internal document type, whose plain entities (`<!ENTITY ns_svg "http://…">`, Illustrator's)
    are put in place. A document type of any other form stays: what it declares is refused later."""
    subset = _SUBSET.match(text, text.find("<!DOCTYPE"))
    if subset is None:
        return text
    found = _ENTITY.findall(subset[1])
    if len(found) != subset[1].count("<!ENTITY") or len(found) > MAX_ENTITIES:
        return text
    entities: dict[str, str] = {}
    for name, double, single in found:
        entities.setdefault(name, (double or single).replace('"', "&quot;").replace("'", "&apos;"))
    body = text[: subset.start()] + text[subset.end() :]
    used = [entities[name] for name in _REFERENCE.findall(body) if name in entities]
    if len(used) > MAX_EXPANSIONS or sum(map(len, used)) > MAX_EXPANDED:
        raise SVGRefused(
            "entities", f"{len(used):,} entities expand to {sum(map(len, used)):,} characters"
        )
    return _REFERENCE.sub(lambda match: entities.get(match[1], match[0]), body)
