"""XML reading: turn hostile bytes into XML elements of bounded size.

Handles gzip, encodings, document types and entities. Nothing outside the bytes is ever read, and
nothing in them can grow: input that unpacks, expands, nests or repeats without bound is refused by
name.
"""

import codecs
import re
import zlib
from collections.abc import Iterable
from typing import Protocol
from xml.parsers import expat

from data_pipeline.svg.errors import SVGRefused

MAX_ENTITIES = 64
MAX_EXPANSIONS = 1_000
MAX_EXPANDED = 100_000  # characters
MAX_DEFAULTS = 1_000  # characters: each element may repeat them

_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is a prefix of this one
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    b"<\0": "utf-16-le",
    b"\0<": "utf-16-be",
}
_MARKS = tuple(_BOMS)
_XML_DECLARATION = re.compile(r"\s*<\?xml\b([^>]*)\?>")
_ENCODING = re.compile(r"""encoding\s*=\s*["']([\w.:-]+)["']""")
# Python's names of character sets. Other codecs are none, and some take quadratic time.
_CHARACTER_SETS = re.compile(
    r"utf-8|ascii|iso8859-\d+|cp\d+|koi8-[rtu]|tis-620|big5\w*|gb\w+|euc_\w+|shift_jis\w*|mac-\w+"
)
# prefixes that Python's names lack: `x-sjis`, `windows1252`, `win-1252`, `cp-1252`
_EXTENSION = re.compile(r"x[-_]")
_CODE_PAGE = re.compile(r"(?:windows|win|cp|ibm|dos)[-_]?(\d+)")
_DOCTYPE = re.compile(
    r"""<!DOCTYPE\s[^\[<>]*+"""
    r"""\[((?:[^<>\]"'%]++|<!--(?:[^-]|-(?!->))*+-->|<!(?:[^<>"']|"[^"]*+"|'[^']*+')*+>)*+)\]"""
    r"""\s*>"""
)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_ATTRIBUTE_LIST = re.compile(r"""<!ATTLIST\s(?:[^<>"']|"[^"]*+"|'[^']*+')*+>""")
_ENTITY = re.compile(r"""<!ENTITY\s+([\w:.-]+)\s+(?:"([^"&%<]*)"|'([^'&%<]*)')\s*>""")
_REFERENCE = re.compile(r"&([\w:.-]+);")
_MAX_MEMBERS = 1_000
_GZIP = b"\x1f\x8b"
_WBITS_GZIP = 31  # selects the gzip format in zlib


class Handler(Protocol):
    """Receiver of the elements, in document order.

    Names are `uri local`, or `local` outside namespaces.
    """

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Receive the start tag of an element."""

    def end(self, name: str) -> None:
        """Receive the end tag of an element."""

    def text(self, text: str) -> None:
        """Receive a piece of character data."""


def read_xml(svg: str | bytes, handler: Handler, *, texts: Iterable[str], max_bytes: int) -> None:
    """Pass the elements of the document to the handler, without comments and instructions.

    The caller needs character data only inside elements whose names are in `texts`. If none of
    these names occurs in the document, the handler receives no character data.

    Raises SVGRefused: `too_large`, `bad_gzip`, `bad_encoding`, `entities`, `not_xml`.
    """
    text = svg if isinstance(svg, str) else _decode(_unzip(svg, max_bytes))
    if len(text) > max_bytes:
        raise SVGRefused("too_large", f"{len(text):,} characters, more than {max_bytes:,}")
    text = _normalise_prologue(text)
    if not text:
        raise SVGRefused("not_xml", "the drawing is empty, or not text")

    parser = expat.ParserCreate("utf-8", " ", None)
    parser.StartElementHandler = handler.start
    parser.EndElementHandler = handler.end
    parser.EntityDeclHandler = _refuse_entity
    parser.AttlistDeclHandler = _DefaultCounter().count
    if any(name in text for name in texts):
        parser.buffer_text = True
        parser.buffer_size = 1 << 16
        parser.CharacterDataHandler = handler.text

    try:
        parser.Parse(text.encode("utf-8", "surrogatepass"), True)
    except expat.ExpatError as error:
        raise SVGRefused("not_xml", str(error)) from None


def _normalise_prologue(text: str) -> str:
    """Remove the XML declaration, and expand plain entities."""
    text = text.lstrip("\ufeff \t\r\n")
    # The text is decoded already: a declared encoding would mislead the parser.
    if text.startswith("<?") and (declaration := _XML_DECLARATION.match(text)):
        text = text[declaration.end() :].lstrip()
    if "<!ENTITY" in text:
        text = _expand_entities(text)
    return text


def _refuse_entity(*_: object) -> None:
    raise SVGRefused(
        "entities", "the document declares entities that are external, nested or not plain text"
    )


class _DefaultCounter:
    """Counter of the characters that attributes with a default add to their elements."""

    def __init__(self) -> None:
        self.num_characters = 0

    def count(self, _: str, name: str, kind: str, default: str | None, is_required: int) -> None:
        """Count one declared attribute. Raises SVGRefused: `entities`."""
        self.num_characters += 0 if default is None else len(name) + len(default)
        if self.num_characters > MAX_DEFAULTS:
            raise SVGRefused(
                "entities",
                f"the document declares defaults of attributes with more than {MAX_DEFAULTS:,} "
                "characters",
            )


def _unzip(data: bytes, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise SVGRefused("too_large", f"{len(data):,} bytes, more than {max_bytes:,}")
    if not data.startswith(_GZIP):
        return data

    # A gzip file may have several members, one after another. Each costs a copy of the rest.
    plain = b""
    for _ in range(_MAX_MEMBERS):
        unzip = zlib.decompressobj(wbits=_WBITS_GZIP)
        try:
            plain += unzip.decompress(data, max_bytes + 1 - len(plain))
        except zlib.error as error:
            raise SVGRefused("bad_gzip", str(error)) from None

        if len(plain) > max_bytes:
            raise SVGRefused("too_large", f"more than {max_bytes:,} bytes when unpacked")
        if not unzip.eof:
            raise SVGRefused("bad_gzip", f"the compressed data ends after {len(plain):,} bytes")
        data = unzip.unused_data
        if not data.startswith(_GZIP):
            return plain
    raise SVGRefused("bad_gzip", f"more than {_MAX_MEMBERS:,} compressed members")


def _decode(data: bytes) -> str:
    """Decode by the byte order mark, else by the XML declaration, else as UTF-8."""
    encoding = "utf-8"
    if data.startswith(_MARKS):
        encoding = next(name for mark, name in _BOMS.items() if data.startswith(mark))
    elif b"encoding" in data[:200]:
        encoding = _declared_encoding(data[:200].decode("latin-1"))

    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise SVGRefused("bad_encoding", str(error)[:200]) from None


def _declared_encoding(head: str) -> str:
    """Return the encoding that the XML declaration names, or UTF-8.

    Raises SVGRefused: `bad_encoding`.
    """
    declaration = _XML_DECLARATION.match(head)
    declared = _ENCODING.search(declaration[1]) if declaration else None
    encoding = declared[1].lower() if declared else "utf-8"

    # The declaration was readable as single bytes, therefore these names are wrong.
    if re.match(r"utf[-_]?(16|32)|ucs[-_]?[24]|unicode$", encoding):
        encoding = "utf-8"

    plain_name = _CODE_PAGE.sub(r"cp\1", _EXTENSION.sub("", encoding, count=1))
    try:
        name = codecs.lookup(plain_name).name
    except LookupError:
        name = ""
    if not _CHARACTER_SETS.fullmatch(name):
        raise SVGRefused("bad_encoding", f"encoding {encoding[:40]!r}")
    return name


def _expand_entities(text: str) -> str:
    """Put the plain entities of the internal document type in place.

    Of the document type only the lists of attributes are kept, which may have defaults. Illustrator
    writes such entities: `<!ENTITY ns_svg "http://…">`. A document type of any other
    form stays in the text, and the parser later refuses the entities that it declares.
    """
    doctype = _DOCTYPE.match(text, text.find("<!DOCTYPE"))
    if doctype is None:
        return text
    found = _ENTITY.findall(doctype[1])
    if len(found) != doctype[1].count("<!ENTITY") or len(found) > MAX_ENTITIES:
        return text

    entities: dict[str, str] = {}
    for name, double, single in found:
        value = (double or single).replace('"', "&quot;").replace("'", "&apos;")
        entities.setdefault(name, value)  # XML: the first declaration counts

    lists = _ATTRIBUTE_LIST.findall(_COMMENT.sub("", doctype[1]))
    rest = f"<!DOCTYPE svg [{''.join(lists)}]>" if lists else ""
    body = text[: doctype.start()] + rest + text[doctype.end() :]
    used = [entities[name] for name in _REFERENCE.findall(body) if name in entities]
    num_characters = sum(map(len, used))
    if len(used) > MAX_EXPANSIONS or num_characters > MAX_EXPANDED:
        raise SVGRefused(
            "entities", f"{len(used):,} entities expand to {num_characters:,} characters"
        )
    return _REFERENCE.sub(lambda match: entities.get(match[1], match[0]), body)
