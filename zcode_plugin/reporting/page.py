"""The page itself: one file without scripts, fonts or anything else from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from zcode_plugin.reporting.plots import Picture
from zcode_plugin.reporting.tables import Table

# How the verb knows a page that it may replace.
GENERATOR = '<meta name="generator" content="zcode report">'
# The browser itself sees to it that nothing is loaded.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 4rem; background: #fff;
  color: #1a1a1a; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .3rem; padding-top: .8rem; border-top: 2px solid #1a1a1a; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
.faint { color: #555; font-size: .9rem; margin: 0 0 .15rem; overflow-wrap: anywhere; }
nav { margin: .8rem 0 0; }
nav a { display: inline-block; margin-right: 1.1rem; padding: .3rem 0; }
a { color: #00549a; }
code { font: .875em/1.4 ui-monospace, Menlo, Consolas, monospace; background: #f2f2f2;
  padding: .1em .3em; overflow-wrap: anywhere; }
.missing { border-left: 4px solid #1a1a1a; padding-left: .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid #ddd;
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
thead th { border-bottom: 1.5px solid #1a1a1a; }
tbody th { font-weight: normal; }
tr.strong th, tr.strong td { font-weight: 600; }
.figures { display: flex; flex-wrap: wrap; gap: .9rem 1.4rem; align-items: flex-start;
  margin: .6rem 0 1rem; }
figure { margin: 0; }
img { display: block; max-width: 100%; height: auto; }
ul { padding-left: 1.2rem; }
@media (max-width: 32rem) {
  .small { display: grid; grid-template-columns: 1fr 1fr; }
  th, td { padding-right: .5rem; }
  table { font-size: .82rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .figures { display: block; }
  .figures figure { display: inline-block; width: 48%; vertical-align: top; margin: 0 1% .5rem 0; }
  .small figure { width: 23%; }
}
"""


@dataclass
class Block:
    """A part of a section, shown in this order.

    Attributes:
        title: above it, or none.
        text: a sentence or two.
        table: or none.
        pictures: beside each other as far as there is room.
        small: whether two of them stand beside each other on a phone.
    """

    title: str = ""
    text: str = ""
    table: Table | None = None
    pictures: Sequence[Picture] = ()
    small: bool = False


@dataclass
class Section:
    """A chapter of the page; `missing` are commands that would add something, with what."""

    title: str
    blocks: list[Block]
    missing: list[tuple[str, str]] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """Its name in links."""
        return self.title.lower().replace(" ", "-")

    def is_empty(self) -> bool:
        """Whether there is nothing to show, not even what is missing."""
        return not self.missing and not any(
            block.table or block.pictures or block.text for block in self.blocks
        )


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole page as HTML."""
    shown = [section for section in sections if not section.is_empty()]
    links = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in shown)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        GENERATOR,
        '<link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f'<header><h1>{escape(title)}</h1><p class="faint">{escape(subtitle)}</p>',
        f"<nav>{links}</nav></header><main>",
        *map(_section, shown),
        "</main></body></html>\n",
    ]
    return "\n".join(parts)


def _section(section: Section) -> str:
    parts = [f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>']
    parts += map(_block, section.blocks)
    for what, command in section.missing:
        parts.append(f'<p class="missing">{escape(what)}<br><code>{escape(command)}</code></p>')
    return "\n".join([*parts, "</section>"])


def _block(block: Block) -> str:
    parts = [f"<h3>{escape(block.title)}</h3>"] if block.title else []
    if block.text:
        parts.append(f"<p>{escape(block.text)}</p>")
    if block.table is not None:
        parts.append(_table(block.table))
    if block.pictures:
        kind = "figures small" if block.small else "figures"
        parts.append(f'<div class="{kind}">' + "\n".join(map(_figure, block.pictures)) + "</div>")
    return "\n".join(parts)


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{picture.width}" '
        f'alt="{escape(picture.alt)}"></figure>'
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    lines = [f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>']
    for number, (first, *rest) in enumerate(table.rows):
        kind = ' class="strong"' if number in table.strong else ""
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        lines.append(f'<tr{kind}><th scope="row">{escape(first)}</th>{cells}</tr>')
    lines.append("</tbody></table></div>")
    lines += [f'<p class="faint">{escape(note)}</p>' for note in table.notes]
    return "\n".join(lines)
