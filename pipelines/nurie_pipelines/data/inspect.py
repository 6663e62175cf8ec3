"""``nurie data inspect``: statistics of a data set and a contact sheet to look at."""

from __future__ import annotations

import base64
import html
from collections import Counter
from pathlib import Path
from typing import Any

from nurie.data.manifest import read_manifest
from nurie.data.schema import Row
from nurie.data.shards import ShardReader

SHEET_ROWS = 24
MOST_FREQUENT = 20
_STYLE = (
    "body{font:14px/1.4 system-ui,sans-serif;margin:24px;color:#222;background:#fafafa}"
    "table{border-collapse:collapse}td,th{padding:4px 8px;text-align:left;vertical-align:top}"
    "img{width:128px;height:128px;object-fit:contain;border:1px solid #ddd;display:block}"
    "small{color:#666}"
)


def inspect_dataset(folder: str | Path) -> dict[str, Any]:
    """Verify a data set and count what it holds.

    Args:
        folder: Data set made by ``nurie data build``.

    Returns:
        ``name``, ``counts``, ``shards``, ``bytes``, ``image_size``, ``sketch_styles``,
        ``latents_shape``, ``quarantine`` (reason to count) and per split: ``groups``,
        ``palettes``, ``tags`` (the most frequent, with counts), ``reference_uses`` (least, mean
        and most often that a sample is somebody's mismatched reference).

    Raises:
        nurie.data.manifest.ManifestError: If the data set is unfinished or damaged.
    """
    manifest = read_manifest(folder, verify=True)
    reasons = Counter(file.reason.split(":")[0] for file in manifest.quarantine)
    return {
        "name": manifest.name,
        "counts": manifest.counts,
        "shards": len(manifest.shards),
        "bytes": sum((Path(folder) / shard.file).stat().st_size for shard in manifest.shards),
        "image_size": manifest.image_size,
        "sketch_styles": list(manifest.sketch_styles),
        "latents_shape": manifest.latents_shape,
        "quarantine": dict(reasons),
        "splits": {split: _split_statistics(folder, split) for split in manifest.counts},
    }


def write_contact_sheet(
    folder: str | Path, out: str | Path, split: str = "train", rows: int = SHEET_ROWS
) -> Path:
    """Write one self-contained HTML page: picture, sketches, mask and mismatched reference.

    Args:
        folder: Data set made by ``nurie data build``.
        out: The HTML file.
        split: Which split to show.
        rows: Samples shown, spread evenly over the split.

    Returns:
        The path of the page.
    """
    reader = ShardReader(folder, split)
    shown = sorted({place * len(reader) // rows for place in range(rows)})
    styles = [html.escape(style) for style in reader.manifest.sketch_styles]
    titles = ["picture", *styles, "mask", "mismatched reference", "sample"]
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = "".join(_sheet_row(reader, index) for index in shown)
    page = (
        f"<!doctype html><meta charset=utf-8><title>{html.escape(reader.manifest.name)}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(reader.manifest.name)}: {split}</h1>"
        f"<p>{len(shown)} of {len(reader)} samples; {_left_out(reader)}</p>"
        f"<table><tr>{head}</tr>{body}</table>"
    )
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _split_statistics(folder: str | Path, split: str) -> dict[str, Any]:
    index = ShardReader(folder, split).index
    uses = Counter(other for ids in index["mismatched_ids"].to_pylist() for other in ids)
    counts = [uses[sample_id] for sample_id in index["sample_id"].to_pylist()]
    tags = Counter(tag for tags in index["tags"].to_pylist() for tag in tags)
    return {
        "groups": len(index["group_id"].unique()),
        "palettes": len(index["palette_id"].unique()),
        "tags": dict(tags.most_common(MOST_FREQUENT)),
        "reference_uses": {
            "least": min(counts),
            "mean": round(sum(counts) / len(counts), 2),
            "most": max(counts),
        },
    }


def _sheet_row(reader: ShardReader, index: int) -> str:
    columns = ("sample_id", "image", "sketches", "mask", "mismatched_ids", "tags", "palette")
    row = reader.read([index], columns)[0]
    other = reader.row_of[row["mismatched_ids"][0]]
    reference = reader.read([other], ("image",))[0]["image"]
    pictures = [row["image"], *row["sketches"], row["mask"], reference]
    cells = "".join(f"<td><img alt='' src='{_data_address(png)}'></td>" for png in pictures)
    return f"<tr>{cells}<td>{_caption(row)}</td></tr>"


def _caption(row: Row) -> str:
    tags = html.escape(", ".join(row["tags"]))
    return f"{html.escape(row['sample_id'])}<br><small>{tags}</small>"


def _left_out(reader: ShardReader) -> str:
    return f"{len(reader.manifest.quarantine)} files left out"


def _data_address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
