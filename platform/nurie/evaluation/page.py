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
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); }
thead th { border-bottom-width: 2px; white-space: nowrap; } td small { opacity: .65; }
td { white-space: nowrap; }
.cases { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; padding: .6rem; background: var(--soft); border-radius: 6px; }
figcaption { font-size: .85rem; max-width: 36rem; overflow-wrap: anywhere; }
.row { display: flex; flex-wrap: wrap; gap: .4rem; }
.row div { font-size: .75rem; opacity: .9; }
.row img { display: block; width: 128px; height: auto; border: 1px solid var(--line); }
.row img.pixels { image-rendering: pixelated; }
"""


@dataclass(frozen=True, eq=False)
class Case:
    """Some pictures that belong together.

    Attributes:
        caption: A sentence.
        pictures: Label -> picture, uint8 [H, W, 3] or [H, W].
    """

    caption: str
    pictures: Mapping[str, np.ndarray]


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
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1><p>{_text(head)}</p>",
        *map(_table, tables),
        *(_gallery(gallery) for gallery in galleries if gallery.cases),
    ]
    if notes:
        parts.append("<h2>Notes</h2><dl>")
        parts += [f"<dt><b>{escape(k)}</b></dt><dd>{_text(v)}</dd>" for k, v in notes.items()]
        parts.append("</dl>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{_cell(text)}</td>" for text in row[1:])
        + "</tr>"
        for row in table.rows
    )
    note = f"<p>{_text(table.note)}</p>" if table.note else ""
    return (
        f'<h2>{_text(table.title)}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note}"
    )


def _text(text: str) -> str:
    """A sentence; what stands in backticks is set as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _cell(text: str) -> str:
    value, bracket, bounds = text.partition(" (")
    return f"{escape(value)} <small>({escape(bounds)}</small>" if bracket else escape(text)


def _gallery(gallery: Gallery) -> str:
    cases = "".join(map(_case, gallery.cases))
    return (
        f"<h2>{_text(gallery.title)}</h2><p>{_text(gallery.text)}</p>"
        f'<div class="cases">{cases}</div>'
    )


def _case(case: Case) -> str:
    pictures = "".join(
        f"<div>{_image(picture, label)}{escape(label)}</div>"
        for label, picture in case.pictures.items()
    )
    return (
        f'<figure><div class="row">{pictures}</div>'
        f"<figcaption>{escape(case.caption)}</figcaption></figure>"
    )


def _image(picture: np.ndarray, label: str) -> str:
    image = Image.fromarray(picture)
    if max(image.size) > _SIDE:
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    data = BytesIO()
    image.save(data, "WEBP", quality=92, method=4)
    text = base64.b64encode(data.getvalue()).decode()
    return f'<img alt="{escape(label)}" src="data:image/webp;base64,{text}">'
