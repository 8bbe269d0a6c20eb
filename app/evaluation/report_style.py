"""Frame and style sheet of a report."""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="{generator}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{content}
</body>
</html>
"""

_COLOURS = (
    ("#0b6b50", "#6fd3ae"),
    ("#b4431f", "#ff9f7c"),
    ("#2b57b8", "#8fb3ff"),
    ("#8a2f86", "#e79be3"),
    ("#7a6200", "#e3c75a"),
    ("#51606b", "#b5c3cc"),
)
"""Colour of each run on light and on dark pages; the seventh run has the first one again."""

MAX_RUNS = 12


def _list_colours(dark: bool) -> str:
    return " ".join(f"--r{i}: {_COLOURS[i % len(_COLOURS)][dark]};" for i in range(MAX_RUNS))


_USES = "\n".join(
    f".r{i} {{ stroke: var(--r{i}); }} circle.r{i} {{ fill: var(--r{i}); }} "
    f".name.r{i}::before {{ background: var(--r{i}); }}"
    for i in range(MAX_RUNS)
)

# The background of a drawing stays light in dark mode, because currentColor is black in an image.
STYLE = f"""
:root {{
  color-scheme: light dark; --page: #f6f6f4; --card: #fff; --line: #e2e1dd; --text: #1d1d1b;
  --soft: #63625e; --good: #0b6b50; --bad: #a3260f; --mark: #dcf1e7; --wrong: #fbe0d9;
  --check: #f1f1ef; --ground: #fff; {_list_colours(False)}
}}
@media (prefers-color-scheme: dark) {{ :root {{
  --page: #161718; --card: #202224; --line: #34373a; --text: #ececea; --soft: #a5a7a4;
  --good: #6fd3ae; --bad: #ff9c87; --mark: #21463a; --wrong: #5a2a20; --check: #d3d3d0;
  --ground: #dededb; {_list_colours(True)}
}} }}
* {{ box-sizing: border-box; margin: 0; }}
body {{
  max-width: 1440px; margin: auto; padding: clamp(16px, 4vw, 40px); background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}}
h1 {{ font-size: clamp(22px, 3vw, 30px); line-height: 1.2; letter-spacing: -.01em; }}
h2 {{ margin: 36px 0 4px; font-size: 20px; }}
h3 {{ font-size: 15px; }}
h3 small {{ float: right; }}
small, .note, dt, footer, article > p {{ color: var(--soft); font-size: 13px; font-weight: 400; }}
ul {{ padding: 0; list-style: none; }}
.runs {{ display: flex; flex-wrap: wrap; gap: 4px 20px; margin-top: 10px; }}
.notices {{ margin-top: 10px; color: var(--soft); font-size: 14px; }}
.name::before {{
  content: ""; display: inline-block; width: 10px; height: 10px; margin-right: 6px;
  border-radius: 50%;
}}
.grid {{
  display: grid; gap: 14px; margin-top: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr));
}}
article, .table {{
  min-width: 0; padding: 14px 16px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px;
}}
svg {{ display: block; width: 100%; fill: none; }}
.chart polyline {{ stroke-width: 1.6; stroke-linejoin: round; }}
.chart text {{ fill: var(--soft); font-size: 11px; }}
.end {{ text-anchor: end; }} .middle {{ text-anchor: middle; }}
.tick, .axis {{ stroke: var(--line); }}
.range text {{ fill: var(--soft); font-size: 11px; }}
.range .r0, .range line {{ stroke-width: 2; }}
.range .mark {{ stroke: var(--soft); stroke-width: 1.5; }}
.range .target {{ stroke: var(--text); stroke-dasharray: 3 2; stroke-width: 1.5; }}
{_USES}
.score li {{ margin-top: 8px; }}
.score li b {{ margin-left: 8px; font-variant-numeric: tabular-nums; }}
i.good, i.bad {{
  margin-left: 6px; padding: 1px 7px; border: 1px solid; border-radius: 9px; font-size: 12px;
  font-style: normal; white-space: nowrap;
}}
i.good {{ color: var(--good); }} i.bad {{ color: var(--bad); }}
details {{ grid-column: 1 / -1; }} summary {{ padding: 6px 0; cursor: pointer; }}
.table {{ grid-column: 1 / -1; overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 14px; overflow-wrap: normal; }}
th, td {{
  padding: 5px 18px 5px 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; font-variant-numeric: tabular-nums;
}}
th {{ font-weight: 500; }} thead th {{ color: var(--soft); font-size: 13px; }}
td {{ min-width: 110px; max-width: 460px; overflow-wrap: anywhere; }}
.drawing {{ display: flex; flex-direction: column; padding: 0; overflow: hidden; }}
.drawing img {{
  width: 100%; height: 180px; padding: 22px; object-fit: contain;
  background: repeating-conic-gradient(var(--check) 0 25%, var(--ground) 0 50%) 50% / 20px 20px;
}}
.drawing dl {{ flex: 1; padding: 14px 16px 0; }}
.drawing dd {{ margin-bottom: 10px; }}
mark {{ background: var(--mark); box-shadow: 0 0 0 2px var(--mark); color: inherit; }}
s {{ background: var(--wrong); text-decoration-color: var(--bad); }}
.wrong {{ margin-top: 4px; color: var(--bad); font-size: 13px; }}
footer {{ padding: 0 16px 12px; font-family: ui-monospace, monospace; }}
"""
