"""One HTML page of drawings with their captions, safe to open with untrusted content."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GalleryItem:
    """A drawing with its reference caption and the captions of the base and the tuned model."""

    id: str
    svg: str
    reference: str
    base: str
    tuned: str


def render_gallery(items: Sequence[GalleryItem], *, title: str, summary: Mapping[str, str]) -> str:
    """Return a self-contained page: the figures of the summary, and a card for each item.

    Nothing in the page can run or load anything. The page has no script, and its content security
    policy allows none. A drawing is an image, in which browsers neither run scripts nor load
    anything. All text is escaped.
    """
    figures = "".join(
        f"<div><dt>{escape_text(name)}</dt><dd>{escape_text(value)}</dd></div>"
        for name, value in summary.items()
    )
    cards = "\n".join(map(_render_card, items))
    return _PAGE.format(
        title=escape_text(title), style=_STYLE, figures=figures, num=len(items), cards=cards
    )


def _render_card(item: GalleryItem) -> str:
    image = base64.b64encode(item.svg.encode("utf-8", errors="replace")).decode("ascii")
    return _CARD.format(
        id=escape_text(item.id),
        image=image,
        reference=escape_text(item.reference),
        base=mark_words(item.base, item.reference),
        tuned=mark_words(item.tuned, item.reference),
    )


def mark_words(caption: str, reference: str) -> str:
    """Return the caption as HTML, with the words that are in the reference marked."""
    if not caption:
        return "<i>no words</i>"

    reference_words = set(re.findall(r"\w+", reference.casefold()))
    html_parts = []
    for part in re.split(r"(\w+)", caption):  # words, and the text between them
        text = escape_text(part)
        is_known = part.casefold() in reference_words
        html_parts.append(f"<mark>{text}</mark>" if is_known else text)

    return "".join(html_parts).replace("</mark> <mark>", " ")


def escape_text(text: str) -> str:
    """Return any string as HTML text or attribute value.

    Characters that HTML cannot hold (control characters, lone surrogates) become �.
    """
    forbidden = r"[^\t\n\r -~\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
    return html.escape(re.sub(forbidden, "\ufffd", text))


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<dl>{figures}</dl>
<p>{num} drawings. <mark>Marked words</mark> are in the reference.</p>
</header>
<main>
{cards}
</main>
</body>
</html>
"""

_CARD = """\
<article>
<img src="data:image/svg+xml;base64,{image}" alt="drawing {id}" loading="lazy">
<dl>
<div class="reference"><dt>Reference</dt><dd>{reference}</dd></div>
<div class="before"><dt>Base model</dt><dd>{base}</dd></div>
<div class="after"><dt>Tuned model</dt><dd>{tuned}</dd></div>
</dl>
<footer>{id}</footer>
</article>"""

# The background of a drawing stays light in dark mode, because currentColor is black in an image.
# A backslash at the end of a line continues the line.
_STYLE = """
:root {
  color-scheme: light dark; --page: #f6f6f4; --card: #fff; --line: #e2e1dd; --text: #1d1d1b; \
--soft: #696864;
  --accent: #0b6b50; --mark: #dcf1e7; --check: #f1f1ef; --ground: #fff;
}
@media (prefers-color-scheme: dark) { :root {
  --page: #161718; --card: #202224; --line: #34373a; --text: #ececea; --soft: #a0a29f;
  --accent: #6fd3ae; --mark: #21463a; --check: #d3d3d0; --ground: #dededb;
} }
* { box-sizing: border-box; margin: 0; }
body {
  max-width: 1440px; margin: auto; padding: clamp(16px, 4vw, 40px); background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: clamp(22px, 3vw, 30px); line-height: 1.2; letter-spacing: -.01em; }
dt, footer, header p { color: var(--soft); font-size: 13px; }
header dl, main { display: grid; gap: 8px; grid-template-columns: repeat(auto-fill, minmax(170px, \
1fr)); }
header dl { margin: 20px 0; }
header div, article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
header div { padding: 8px 12px; }
header dd { font-size: 20px; line-height: 1.3; font-variant-numeric: tabular-nums; }
main { gap: 18px; margin-top: 12px; grid-template-columns: repeat(auto-fill, minmax(min(100%, \
280px), 1fr)); }
article { display: flex; flex-direction: column; overflow: hidden; }
img {
  width: 100%; height: 180px; padding: 22px; object-fit: contain;
  background: repeating-conic-gradient(var(--check) 0 25%, var(--ground) 0 50%) 50% / 20px 20px;
}
article dl { flex: 1; padding: 14px 16px 0; }
article dd { max-height: 7.5em; margin-bottom: 10px; overflow: auto; }
.before dd { color: var(--soft); }
.after dt { color: var(--accent); font-weight: 600; }
mark { border-radius: 1px; background: var(--mark); box-shadow: 0 0 0 2px var(--mark); color: \
inherit; }
footer { padding: 0 16px 12px; font-family: ui-monospace, monospace; }
"""
