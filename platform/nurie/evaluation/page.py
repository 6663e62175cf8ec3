"""One self-contained HTML page: tables, pictures of cases, nothing from elsewhere."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO

import numpy as np
from PIL import Image

from nurie.evaluation.report import Table

_SIDE = 256
_LONG_CELL = 60
_MANY_COLUMNS = 6
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere; }
nav { columns: 16rem; } nav a { display: block; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); }
tbody th { position: sticky; left: 0; background: Canvas; white-space: nowrap; }
thead th { border-bottom-width: 2px; white-space: nowrap; } td small { opacity: .65; }
td { white-space: nowrap; } td.text { white-space: normal; }
table.wide td small { display: block; }
.cases { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; padding: .6rem; max-width: 100%; box-sizing: border-box;
  background: var(--soft); border-radius: 6px; }
figcaption { font-size: .85rem; max-width: 36rem; overflow-wrap: anywhere; }
.row { display: flex; gap: .4rem; overflow-x: auto; }
.row div { flex: 0 1 128px; min-width: 80px; font-size: .75rem; }
.row img { display: block; width: 100%; height: auto; border: 1px solid var(--line);
  box-sizing: border-box; }
.row img + img { margin-top: .4rem; }
.row img.pixels { image-rendering: pixelated; }
"""


@dataclass(frozen=True, eq=False)
class Case:
    """Some pictures that belong together.

    Attributes:
        caption: A sentence.
        pictures: Label -> picture, uint8 [H, W, 3] or [H, W], or pictures that stand above each
            other.
    """

    caption: str
    pictures: Mapping[str, np.ndarray | Sequence[np.ndarray]]


@dataclass(frozen=True, eq=False)
class Gallery:
    """A section of cases.

    Attributes:
        title: Its heading.
        text: What is to be seen.
        cases: The cases.
    """

    title: str
    text: str
    cases: Sequence[Case]


def render(
    title: str,
    head: str,
    tables: Sequence[Table],
    galleries: Sequence[Gallery],
    notes: Mapping[str, str],
) -> str:
    """The page.

    Args:
        title: Its heading.
        head: What was measured.
        tables: Numbers; a cell's interval in brackets is shown small.
        galleries: Pictures.
        notes: Terms and what they mean, at the end.
    """
    shown = [gallery for gallery in galleries if gallery.cases]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1><p>{_text(head)}</p>",
        _contents([each.title for each in (*tables, *shown)]),
        *map(_table, tables),
        *map(_gallery, shown),
    ]
    if notes:
        parts.append("<h2>Notes</h2><dl>")
        parts += [f"<dt><b>{escape(k)}</b></dt><dd>{_text(v)}</dd>" for k, v in notes.items()]
        parts.append("</dl>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _contents(titles: Sequence[str]) -> str:
    links = "".join(f'<a href="#{_anchor(title)}">{_text(title)}</a>' for title in titles)
    return f"<nav>{links}</nav>"


def _heading(title: str) -> str:
    return f'<h2 id="{_anchor(title)}">{_text(title)}</h2>'


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(map(_cell, row[1:])) + "</tr>"
        for row in table.rows
    )
    note = f"<p>{_text(table.note)}</p>" if table.note else ""
    wide = ' class="wide"' if len(table.header) > _MANY_COLUMNS else ""
    return (
        f'{_heading(table.title)}<div class="scroll"><table{wide}><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note}"
    )


def _text(text: str) -> str:
    """A sentence; what stands in backticks is set as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _cell(text: str) -> str:
    """A cell; an interval is set small, a verdict behind it is not."""
    value, _, rest = text.partition(" (")
    bounds, closed, verdict = rest.partition(")")
    if len(text) > _LONG_CELL:
        return f'<td class="text">{escape(text)}</td>'
    if not closed:
        return f"<td>{escape(text)}</td>"
    return f"<td>{escape(value)} <small>({escape(bounds)})</small>{escape(verdict)}</td>"


def _gallery(gallery: Gallery) -> str:
    cases = "".join(map(_case, gallery.cases))
    return f'{_heading(gallery.title)}<p>{_text(gallery.text)}</p><div class="cases">{cases}</div>'


def _case(case: Case) -> str:
    pictures = "".join(
        f"<div>{''.join(_image(one, label) for one in _stack(picture))}{escape(label)}</div>"
        for label, picture in case.pictures.items()
    )
    return (
        f'<figure><div class="row">{pictures}</div>'
        f"<figcaption>{escape(case.caption)}</figcaption></figure>"
    )


def _stack(picture: np.ndarray | Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    return [picture] if isinstance(picture, np.ndarray) else picture


def _image(picture: np.ndarray, label: str) -> str:
    image = Image.fromarray(picture)
    if max(image.size) > _SIDE:
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    data = BytesIO()
    image.save(data, "WEBP", quality=92, method=4)
    text = base64.b64encode(data.getvalue()).decode()
    return f'<img alt="{escape(label)}" src="data:image/webp;base64,{text}">'
