"""Elements as selectors see them: with names, attributes, siblings and ancestors of the source.

The drawing tree cannot answer selectors, because links, titles and metadata are absent from it.
"""

from collections.abc import Iterator, Sequence

from data_pipeline.svg.errors import SVGRefused
from data_pipeline.svg.read import read_xml
from data_pipeline.svg.tree import SVG

MAX_STEPS = 1_000_000  # tests of an element, and moves to another one, while selectors are matched

_XHTML_LINK = "{http://www.w3.org/1999/xhtml}a"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"


class Steps:
    """Counter that bounds the time of matching, which can grow faster than the drawing."""

    def __init__(self) -> None:
        self.left = MAX_STEPS

    def spend(self, num: int) -> None:
        """Count the steps. Raises SVGRefused: `too_many_elements`."""
        self.left -= num
        if self.left < 0:
            raise SVGRefused(
                "too_many_elements",
                f"the style rules need more than {MAX_STEPS:,} steps to match all elements",
            )


class Element:
    """Element with the attributes and methods that compiled selectors of cssselect2 use.

    It stands for cssselect2's ElementWrapper and for the ElementTree element in it.
    """

    in_html_document = False

    def __init__(
        self, name: str, attributes: dict[str, str], parent: "Element | None", steps: Steps
    ) -> None:
        namespace, _, self.local_name = name.rpartition(" ")
        self.namespace_url = namespace or SVG  # a drawing may omit its namespace
        # cssselect2 knows only the links of HTML, for `:link`.
        is_link = self.local_name == "a" and self.namespace_url == SVG
        self.tag = _XHTML_LINK if is_link else f"{{{self.namespace_url}}}{self.local_name}"

        self.attrib = {
            f"{{{key.replace(' ', '}', 1)}" if " " in key else key: value
            for key, value in attributes.items()
        }
        self.id = attributes.get("id")
        self.classes = frozenset(attributes.get("class", "").split())
        self.text = ""
        self.parent = parent
        self.children: list[Element] = []
        self.steps = steps
        self.index = 0
        if parent:
            self.index = len(parent.children)
            parent.children.append(self)

    # as ElementTree element

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the value of an attribute; for `:link`, also that of `xlink:href`."""
        if name == "href" and default is None:
            default = self.attrib.get(_XLINK_HREF)
        return self.attrib.get(name, default)

    # as ElementWrapper

    @property
    def etree_element(self) -> "Element":
        """Return the element itself."""
        return self

    @property
    def etree_children(self) -> list["Element"]:
        """Return the children."""
        return self.children

    @property
    def etree_siblings(self) -> Sequence["Element"]:
        """Return the children of the parent."""
        siblings = self.parent.children if self.parent else [self]
        self.steps.spend(len(siblings) // 10)  # cssselect2 compares their tags, which is fast
        return siblings

    @property
    def lang(self) -> str:
        """Return the language, which is inherited."""
        here: Element | None = self
        while here and _XML_LANG not in here.attrib:
            self.steps.spend(1)
            here = here.parent
        return here.attrib[_XML_LANG].lower() if here else ""

    @property
    def previous(self) -> "Element | None":
        """Return the sibling in front."""
        return self.parent.children[self.index - 1] if self.parent and self.index else None

    @property
    def ancestors(self) -> Iterator["Element"]:
        """Yield the ancestors, the innermost first."""
        here = self.parent
        while here:
            self.steps.spend(1)
            yield here
            here = here.parent

    @property
    def previous_siblings(self) -> Iterator["Element"]:
        """Yield the siblings in front, the nearest first."""
        return self._step_through(self.etree_siblings[: self.index][::-1])

    def iter_siblings(self) -> Iterator["Element"]:
        """Yield the siblings and the element itself, in order."""
        return self._step_through(self.etree_siblings)

    def iter_next_siblings(self) -> Iterator["Element"]:
        """Yield the siblings behind, in order."""
        return self._step_through(self.etree_siblings[self.index + 1 :])

    def iter_children(self) -> Iterator["Element"]:
        """Yield the children."""
        return self._step_through(self.children)

    def iter_subtree(self) -> Iterator["Element"]:
        """Yield the element and its descendants, in document order."""
        stack = [self]
        while stack:
            here = stack.pop()
            self.steps.spend(1)
            yield here
            stack += here.children[::-1]

    def _step_through(self, elements: Sequence["Element"]) -> Iterator["Element"]:
        for element in elements:
            self.steps.spend(1)
            yield element


class _ElementReader:
    """Handler of `read_xml` that keeps every element, in document order."""

    def __init__(self) -> None:
        self.elements: list[Element] = []
        self.open_elements: list[Element] = []
        self.steps = Steps()

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Add an element."""
        parent = self.open_elements[-1] if self.open_elements else None
        element = Element(name, attributes, parent, self.steps)
        self.elements.append(element)
        self.open_elements.append(element)

    def end(self, name: str) -> None:
        """Close the innermost open element."""
        self.open_elements.pop()

    def text(self, text: str) -> None:
        """Keep one character, which `:empty` asks for."""
        self.open_elements[-1].text = text[:1]


def read_elements(svg: str | bytes, numbers: list[int], max_bytes: int) -> list[Element]:
    """Return the elements with these numbers, counted from 0 in document order.

    The document has been read before without error.
    """
    reader = _ElementReader()
    read_xml(svg, reader, texts=("<",), max_bytes=max_bytes)
    return [reader.elements[number] for number in numbers]
