"""The page: its style, and pieces of HTML. Everything that comes from a run or its data passes `escape`."""

from collections.abc import Iterable, Sequence
from html import escape

from physicsml_ase.report.svg import Picture, as_svg

STYLE = """
:root { color-scheme: light dark; --ink: #1d2327; --soft: #59636b; --faint: #9a9a9a; --grid: #e6e8ea;
  --paper: #ffffff; --back: #f3f5f6; --line: #dde1e4; --blue: #0072b2; --orange: #d55e00; --green: #009e73;
  --pink: #cc79a7; --amber: #e69f00; --sky: #56b4e9;
  --good: #1a7f37; --bad: #c3261f; --warn: #8a5a00; --warnback: #fff6df; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ea; --soft: #a3adb4; --faint: #7c858b; --grid: #333a3f;
  --paper: #1b2024; --back: #121518; --line: #333a3f; --blue: #57b2e8; --orange: #f08a3c; --green: #2fc79b;
  --pink: #e29cc4; --amber: #f0b93a; --sky: #8fcdf2;
  --good: #57c26f; --bad: #ff7b72; --warn: #e3b341; --warnback: #2c2612; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); line-height: 1.45;
  font: 16px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .6rem 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .7rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
.soft, figcaption, caption { color: var(--soft); font-size: .88rem; }
a { color: var(--blue); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem;
  margin: 1rem 0; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.facts { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); }
.fact { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .7rem; }
.fact b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.fact span { color: var(--soft); font-size: .82rem; }
figure { margin: 0; min-width: 0; max-width: 34rem; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { fill: var(--ink); }
@media (prefers-color-scheme: dark) { figure svg image { filter: brightness(1.7); } }
figcaption { margin-top: .2rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; }
td.n, th.n { text-align: right; }
td.w { white-space: normal; min-width: 16rem; }
caption { text-align: left; padding-bottom: .2rem; }
pre { margin: 0; font-size: .8rem; overflow-x: auto; }
details { margin: .5rem 0; } summary { cursor: pointer; }
.note { background: var(--warnback); border-left: 4px solid var(--warn); padding: .4rem .7rem; margin: .4rem 0;
  overflow-wrap: anywhere; border-radius: .2rem; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
@media (max-width: 40rem) {
  table.wide, table.wide thead, table.wide tbody { display: block; }
  table.wide tr { display: grid; grid-template-columns: 1fr repeat(3, auto); border-bottom: 1px solid var(--line); }
  table.wide th, table.wide td { border: 0; padding-bottom: 0; }
  table.wide th.w { display: none; }
  table.wide td.w { grid-column: 1 / -1; min-width: 0; padding-bottom: .35rem; color: var(--soft); } }
@media print { section { break-inside: avoid; } }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Nothing is fetched and no script runs, whatever the data hold."""


class Html(str):
    """Text that is HTML already."""


def text(value: object) -> Html:
    """A value as HTML."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def page(title: str, body: Iterable[str]) -> str:
    """The whole file."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(anchor: str, title: str, *parts: str) -> Html:
    """A section with its heading; nothing where it would be empty."""
    inside = "\n".join(part for part in parts if part)
    if not inside:
        return Html("")
    return Html(f'<section id="{escape(anchor)}">\n<h2>{escape(title)}</h2>\n{inside}\n</section>')


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[int] = ()) -> Html:
    """A table that scrolls by itself; `numbers` are the columns that are set to the right.

    With -1 among them the last column is long text, which stands below the others on a narrow page.
    """
    wide = len(head) - 1 if -1 in numbers else None

    def cell(tag: str, k: int, value: object) -> str:
        kind = ' class="n"' if k in numbers else ' class="w"' if k == wide else ""
        return f"<{tag}{kind}>{text(value)}</{tag}>"

    lines = ["".join(cell("td", k, value) for k, value in enumerate(row)) for row in rows]
    if not lines:
        return Html("")
    top = "".join(cell("th", k, name) for k, name in enumerate(head))
    kind = "" if wide is None else ' class="wide"'
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return Html(
        f'<div class="scroll"><table{kind}><thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def facts(found: Iterable[tuple[str, object]]) -> Html:
    """Key numbers side by side."""
    inside = "\n".join(
        f'<div class="fact"><b>{text(value)}</b><span>{text(name)}</span></div>' for name, value in found
    )
    return Html(f'<div class="facts">\n{inside}\n</div>') if inside else Html("")


def pictures(found: Sequence[Picture]) -> Html:
    """Figures side by side, where there is room."""
    inside = "\n".join(_picture(picture) for picture in found)
    return Html(f'<div class="grid">\n{inside}\n</div>') if inside else Html("")


def _picture(picture: Picture) -> str:
    svg = as_svg(picture).replace('role="img">', f'role="img" aria-label="{escape(picture.alt)}">', 1)
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    return f"<figure>{svg}{caption}</figure>"


def notes(found: Iterable[str]) -> Html:
    """Remarks that a reader must not miss."""
    return Html("\n".join(f'<div class="note">{escape(note)}</div>' for note in found))


def heading(words: str) -> Html:
    """A heading within a section."""
    return Html(f"<h3>{escape(words)}</h3>")


def paragraph(words: object) -> Html:
    """A paragraph in soft ink."""
    return Html(f'<p class="soft">{text(words)}</p>')


def folded(title: str, inside: str) -> Html:
    """What is there for those who ask."""
    return Html(f"<details><summary>{escape(title)}</summary>\n{inside}\n</details>")


def listing(words: str) -> Html:
    """Lines as they are."""
    return Html(f"<pre>{escape(words)}</pre>")
