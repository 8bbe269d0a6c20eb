"""Measure how fast, short and faithful canonical SVG is, and how hostile files end.

    python -m benchmarks.canonical --json outputs/bench/canonical.json

The benchmark reads `../shared/data` beside the repository. If that is absent, it uses the phosphor
icons and hostile files written here. Seconds are CPU seconds of one process.
"""

import argparse
import gzip
import json
import lzma
import multiprocessing
import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tokenizers import Tokenizer

from app.evaluation.render import Renderer
from benchmarks.drawing import SIDE, comparable, difference
from data_pipeline.sources.phosphor import read_phosphor
from data_pipeline.svg import SVGRefused, canonicalise

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
NUM_TIMED, NUM_TOKENISED, NUM_DRAWN = 2_000, 6_000, 1_200
VISIBLE = 3.0  # mean difference over a picture of 64 × 64 pixels, of 255
_UNSAFE = re.compile(
    r"<script|\son\w+\s*=|<!|<\?|javascript:|<foreignObject|<image|<title|<metadata"
    r"|href=\"[^#]|url\([^#]",
    re.IGNORECASE,
)


def icons() -> tuple[list[str], str]:
    """Return raw icons, and the name of their corpus."""
    paths = sorted((SHARED / "icons-large").glob("*.parquet"))
    if paths:
        tables = [pq.read_table(path, columns=["svg"]) for path in paths]
        return [svg for table in tables for svg in table["svg"].to_pylist()], "icons-large"

    svgs = [icon.svg.decode() for icon in read_phosphor()]
    return svgs, "phosphor icons: ../shared/data is absent"


def hard_files() -> tuple[dict[str, bytes], str]:
    """Return difficult and hostile files by name, and the name of their corpus."""
    paths = sorted((SHARED / "hard").glob("*.parquet"))
    if paths:
        tables = [pq.read_table(path, columns=["id", "svg"]) for path in paths]
        rows = [row for table in tables for row in table.to_pylist()]
        return {row["id"]: row["svg"] for row in rows}, "hard"

    return hostile_files(), "hostile files written by the benchmark: ../shared/data is absent"


def hostile_files() -> dict[str, bytes]:
    """Return files as a scraped corpus has them, and files of an attacker."""
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        ' viewBox="0 0 24 24">'
    )
    box = '<path d="M4 4h16v16H4z"/>'
    laughs = '<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in pairwise("abcdefghi")
    )
    bodies = {
        "plain": box,
        "script": f"<script>alert(1)</script><g onload='x()'>{box}</g>",
        "external": f'<image href="http://x/y.png"/><use href="file:///etc/passwd#a"/>{box}',
        "style": f"<style>g.a path, #b .c {{fill:red}}</style><g class='a'>{box}</g>",
        "foreign": f"<foreignObject><body>hi</body></foreignObject>{box}",
        "deep": f"{'<g>' * 5000}{box}{'</g>' * 5000}",
        "elements": '<path d="M4 4h9" fill="none"/>' * 100_000,
        "attributes": "<path " + " ".join(f"a{n}='1'" for n in range(50_000)) + " d='M0 0h9'/>",
        "numbers": f"<path d='M0 0{'l1 2' * 500_000}'/>",
        "arcs": f"<path d='M0 0{'a1 1 0 019 0' * 200_000}'/>",
        "digits": f"<path d='M0 0h{'1' * 2_000_000}'/>",
        "rules": f"<style>{'*{fill:none}' * 499}</style>{box * 10_000}",
        "links": '<linearGradient id="a" href="#b"/><linearGradient id="b" href="#a"/>' + box,
    }
    files = {name: f"{head}{body}</svg>".encode() for name, body in bodies.items()}

    # files that are more than a body
    plain = files["plain"].decode()
    secret = '<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    namespace = '<!DOCTYPE svg [<!ENTITY n "http://www.w3.org/2000/svg">]>'
    latin_1 = '<?xml version="1.0" encoding="iso-8859-1"?>'
    files |= {
        "laughs": f"<!DOCTYPE svg [{laughs}]>{head}<text>&i;</text></svg>".encode(),
        "external entity": f"{secret}{head}&a;</svg>".encode(),
        "namespace entity": f"{namespace}{plain}".encode(),
        "utf-16": plain.encode("utf-16"),
        "latin-1": f"{latin_1}{plain}".encode("latin-1"),
        "svgz": gzip.compress(plain.encode()),
        "bomb": gzip.compress(b" " * 100_000_000),
        "not xml": b"<html><p>404",
        "empty": b"",
    }
    return files


def _outcome(data: bytes) -> tuple[str, str]:
    """Return ("", canonical text), or (reason of the refusal, "")."""
    try:
        return "", canonicalise(data)
    except SVGRefused as refusal:
        return refusal.reason, ""


def _canonicalise_all(files: dict[str, bytes], outcomes: Any) -> None:
    """Canonicalise in a separate process, so that its peak memory is that of canonicalising."""
    found, slowest = {}, 0.0
    for name, data in files.items():
        started = time.process_time()
        found[name] = _outcome(data)
        slowest = max(slowest, time.process_time() - started)

    # ru_maxrss would include the memory of the parent before exec
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])  # type: ignore[index]
    outcomes.put((found, slowest, peak * 1024))


def hard_figures() -> dict[str, Any]:
    """Return the figures of the hard files: outcomes, time, memory, and changed drawings."""
    files, corpus = hard_files()

    # canonicalise
    spawn = multiprocessing.get_context("spawn")
    outcomes = spawn.Queue()
    process = spawn.Process(target=_canonicalise_all, args=(files, outcomes))
    process.start()
    found, slowest, peak = outcomes.get()
    process.join()

    # compare drawings
    renderer = Renderer(SIDE)
    fates = {name: _fate(renderer, files[name], text) for name, (_, text) in found.items()}
    renderer.close()
    drawable = [fate for fate in fates.values() if fate != "undrawable"]

    return {
        "hard_corpus": corpus,
        "hard_files": len(files),
        "hard_canonical": sum(not reason for reason, _ in found.values()),
        "hard_refused": dict(
            Counter(reason for reason, _ in found.values() if reason).most_common()
        ),
        "hard_unsafe": sum(bool(_UNSAFE.search(text)) for _, text in found.values()),
        "hard_max_seconds": slowest,
        "hard_peak_rss_bytes": peak,
        "hard_drawable": len(drawable),
        "hard_kept_share": drawable.count("kept") / len(drawable),
        "hard_lost": {
            name: fate for name, fate in fates.items() if fate not in ("undrawable", "kept")
        },
    }


def _fate(renderer: Renderer, original: bytes, canonical: str) -> str:
    """Return "kept", "refused" or "different".

    Return "undrawable" if resvg draws nothing once the bitmaps are removed.
    """
    before = renderer.draw(comparable(original))
    if before is None or before.min() == before.max():
        return "undrawable"
    if not canonical:
        return "refused"
    after = renderer.draw(comparable(canonical))
    return "kept" if after is not None and difference(before, after) <= VISIBLE else "different"


def icon_figures() -> dict[str, Any]:
    """Return the figures of ordinary icons: speed, tokens, and visible changes."""
    svgs, corpus = icons()

    # speed
    timed = [svg.encode() for svg in every(svgs, NUM_TIMED)]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        speed = pool.submit(_icons_per_second, timed).result()

    # tokens and drawings
    pairs = [
        (svg, text) for svg in every(svgs, NUM_TOKENISED) if (text := _outcome(svg.encode())[1])
    ]
    count, tokenizer = _counter()
    renderer = Renderer(SIDE)
    num_changed = sum(
        _fate(renderer, svg.encode(), text) == "different" for svg, text in every(pairs, NUM_DRAWN)
    )
    renderer.close()

    return {
        "icon_corpus": corpus,
        "icons": len(svgs),
        "icons_per_core_second": speed,
        "tokenizer": tokenizer,
        "token_ratio": sum(count(text) for _, text in pairs) / sum(count(svg) for svg, _ in pairs),
        "visibly_changed_share": num_changed / len(every(pairs, NUM_DRAWN)),
    }


def every(items: list[Any], about: int) -> list[Any]:
    """Return about that many items, evenly spaced."""
    return items[:: max(1, len(items) // about)]


def _icons_per_second(svgs: list[bytes]) -> float:
    """Return the speed, from the best of three passes over each hundred icons.

    It runs in a separate process, as in `prepare`. Other work on a shared machine can only make a
    pass slower.
    """
    seconds = 0.0
    for start in range(0, len(svgs), 100):
        times = []
        for _ in range(3):
            started = time.process_time()
            for svg in svgs[start : start + 100]:
                _outcome(svg)
            times.append(time.process_time() - started)
        seconds += min(times)
    return len(svgs) / seconds


def _counter() -> tuple[Callable[[str], int], str]:
    """Return a function that counts the tokens of a text, and the name of its tokenizer."""
    path = SHARED / "tokenizer-gemma3" / "tokenizer.json.xz"
    if path.exists():
        tokenizer, name = Tokenizer.from_str(lzma.decompress(path.read_bytes()).decode()), "gemma3"
    else:
        path = ROOT / "app" / "gemma" / "tiny" / "tokenizer.json"
        tokenizer, name = Tokenizer.from_file(str(path)), "tiny: ../shared/data is absent"
    return (lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)), name


def figures() -> dict[str, Any]:
    """Return all figures of this benchmark."""
    return {**icon_figures(), **hard_figures()}


def main() -> None:
    """Run the benchmark and write its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()

    measured = figures()
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"figures": measured}, indent=2) + "\n")
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
