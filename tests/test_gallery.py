"""The gallery page: its content, and that hostile text stays text."""

import base64
from pathlib import Path

import pytest
from lxml import html

from app.evaluation.gallery import GalleryItem, render_gallery

ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "header", "h1", "p", "main",
    "article", "img", "footer", "dl", "div", "dt", "dd", "mark", "i",
}  # fmt: skip


def parse(path: Path) -> html.HtmlElement:
    return html.document_fromstring(path.read_text(encoding="utf-8"))


def texts(page: html.HtmlElement, xpath: str) -> list[str]:
    return [element.text_content() for element in page.xpath(xpath)]


@pytest.mark.parametrize(
    ("evil", "shown"),
    [
        *[(text, text) for text in (
            "<script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "' onload='alert(1)",
            "</style></title></dd></article><svg onload=alert(1)>",
            "]]><!-- {title} %s &lt;b&gt; &#60;b>",
            "javascript:alert(1)",
            "\u202eright to left, 𝕤, é, 日本",
        )],
        ("\x00\x01\x08\x1b[31m\x7f\x85\r\n\t.", "����[31m��\n\t."),
        ("\ud800 and \udfff, \ufffe\uffff", "� and �, ��"),
    ],
)  # fmt: skip
def test_nothing_hostile_becomes_markup(tmp_path: Path, evil: str, shown: str) -> None:
    path = tmp_path / "gallery.html"
    items = [
        GalleryItem(evil, evil, evil, evil, evil),
        GalleryItem(
            "x", f"<svg xmlns='http://www.w3.org/2000/svg'>{evil}</svg>", "", evil, f"a {evil} b"
        ),
    ]
    path.write_text(render_gallery(items, title=evil, summary={evil: evil}), encoding="utf-8")
    page = parse(path)

    assert {element.tag for element in page.iter()} <= ELEMENTS
    for element in page.iter():
        assert not [
            name for name in element.attrib if name.startswith("on") or name in ("href", "style")
        ]
    assert len(page.xpath("//article")) == 2
    assert page.xpath("//@src") == [
        "data:image/svg+xml;base64," + base64.b64encode(item.svg.encode(errors="replace")).decode()
        for item in items
    ]
    assert texts(page, "//title | //h1 | //header//dt | //header//dd") == [shown] * 4
    assert texts(page, "//article[1]//dd") == [shown] * 3
    assert page.xpath("//article[1]//img/@alt") == [f"drawing {shown}"]


def test_the_security_policy_comes_before_all_content(tmp_path: Path) -> None:
    path = tmp_path / "gallery.html"
    path.write_text(
        render_gallery([GalleryItem("x", "<svg/>", "a", "b", "c")], title="Captions", summary={}),
        encoding="utf-8",
    )
    page = parse(path)
    charset, policy = page.xpath("//head/*")[:2]
    assert charset.attrib == {"charset": "utf-8"}
    assert policy.attrib == {
        "http-equiv": "Content-Security-Policy",
        "content": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    }
    assert "url(" not in page.xpath("string(//style)")
    assert "@import" not in page.xpath("string(//style)")


def test_cards_in_order_with_drawing_captions_and_figures(tmp_path: Path) -> None:
    path = tmp_path / "gallery.html"
    svgs = ['<svg xmlns="http://www.w3.org/2000/svg"><text>ünï</text></svg>', "<svg/>"]
    items = [
        GalleryItem("one", svgs[0], "A red circle", "blue", "a red, round Circle"),
        GalleryItem("two", svgs[1], "A line", "", "a line <3"),
    ]
    path.write_text(
        render_gallery(items, title="Captions", summary={"BLEU-4": "0.01 → 0.37", "loss": "2 → 1"}),
        encoding="utf-8",
    )
    page = parse(path)
    assert texts(page, "//header//dt") == ["BLEU-4", "loss"]
    assert texts(page, "//header//dd") == ["0.01 → 0.37", "2 → 1"]
    assert texts(page, "//article//dt") == ["Reference", "Base model", "Tuned model"] * 2
    assert texts(page, "//article//dd") == [
        "A red circle", "blue", "a red, round Circle", "A line", "no words", "a line <3"
    ]  # fmt: skip
    assert texts(page, "//footer") == ["one", "two"]
    decoded = [base64.b64decode(src.split(",")[1]).decode() for src in page.xpath("//@src")]
    assert decoded == svgs
    assert texts(page, "//article[1]//mark") == ["a red", "Circle"]
    assert texts(page, "//article[2]//mark") == ["a line"]
