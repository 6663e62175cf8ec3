"""``nurie data inspect``: statistics of a data set and a contact sheet to look at."""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from nurie.data.data_folder import DataFolder
from nurie.data.manifest import Manifest, read_manifest, read_quarantine
from nurie.data.pixels import decode_pixels
from nurie.data.png import encode_png
from nurie.data.schema import Row
from nurie.data.shards import ShardReader

SHEET_ROWS = 24
MOST_FREQUENT = 20
_STYLE = (
    "body{font:14px/1.4 system-ui,sans-serif;margin:24px;color:#222;background:#fafafa}"
    "table{border-collapse:collapse}td,th{padding:4px 8px;text-align:left;vertical-align:top}"
    "img{width:128px;height:128px;object-fit:contain;border:1px solid #ddd;display:block}"
    "small{color:#666}"
    ".bar{background:#6a8caf;height:1em;display:inline-block;vertical-align:middle}"
    ".hues{display:flex;align-items:flex-end;height:120px;gap:2px}.hues i{flex:1;max-width:24px}"
    "section{margin:24px 0}h2{font-size:16px}"
    "@media(prefers-color-scheme:dark){body{background:#1c1c1e;color:#ddd}img{border-color:#444}}"
)
_HUES = 36
_GREY_SATURATION = 40
"""OpenCV's saturation (0 to 255) below which a pixel has no hue worth counting."""


def inspect_dataset(folder: Path | str) -> dict[str, Any]:
    """Verify a data set and count what it holds.

    Args:
        folder: Data set made by ``nurie data build``, a path or an address.

    Returns:
        ``name``, ``counts``, ``shards``, ``bytes``, ``image_size``, ``sketch_styles``,
        ``buckets`` (samples per shape), ``latent_channels``, ``quarantine`` (reason to count) and
        per split: ``groups``, ``palettes``, ``tags`` (the most frequent, with counts),
        ``reference_uses`` (least, mean and most often that a sample is somebody's mismatched
        reference).

    Raises:
        nurie.data.manifest.ManifestError: If the data set is unfinished or damaged.
    """
    manifest, sizes = read_manifest(folder, verify=True), DataFolder(folder).sizes()
    return {
        "name": manifest.name,
        "counts": manifest.counts,
        "shards": len(manifest.shards),
        "bytes": sum(sizes[shard.file] for shard in manifest.shards),
        "image_size": manifest.image_size,
        "sketch_styles": list(manifest.sketch_styles),
        "buckets": dict(_bucket_counts(manifest)),
        "latent_channels": manifest.latent_channels,
        "quarantine": manifest.quarantine,
        "splits": {split: _split_statistics(folder, split) for split in manifest.counts},
    }


def write_contact_sheet(
    folder: Path | str, out: str | Path, split: str = "train", rows: int = SHEET_ROWS
) -> Path:
    """Write one self-contained HTML page to look at a data set.

    Statistics, what was left out and why, buckets, hues, how often a picture is somebody's
    mismatched reference; then samples with picture, sketches, mask and mismatched reference.

    Args:
        folder: Data set made by ``nurie data build``, a path or an address.
        out: The HTML file.
        split: Which split to show.
        rows: Samples shown, spread evenly over the split.

    Returns:
        The path of the page.
    """
    reader = ShardReader(folder, split)
    shown = sorted({place * len(reader) // rows for place in range(rows)})
    title = html.escape(f"{reader.manifest.name}: {split}")
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"
        f"<p>{len(reader)} samples, {len(reader.index['group_id'].unique())} groups</p>"
        f"{_quarantine(folder, reader.manifest)}{_buckets(reader)}{_hues(reader, shown)}"
        f"{_reference_uses(reader)}{_samples(reader, shown)}</html>"
    )
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _quarantine(folder: Path | str, manifest: Manifest) -> str:
    counts = manifest.quarantine
    if not counts:
        return "<section><h2>Left out</h2><p>nothing</p></section>"
    examples: dict[str, str] = {}
    for file in read_quarantine(folder).select(["file", "reason"]).to_batches():
        for row in file.to_pylist():
            examples.setdefault(row["reason"].split(":")[0], f"{row['file']}: {row['reason']}")
    rows = "".join(
        f"<tr><td>{html.escape(reason)}<td>{count}<td><small>{html.escape(examples[reason])}</small>"
        for reason, count in sorted(counts.items(), key=lambda entry: -entry[1])
    )
    return (
        f"<section><h2>Left out: {sum(counts.values())} files</h2>"
        f"<table><tr><th>reason<th>files<th>for example{rows}</table></section>"
    )


def _bucket_counts(manifest: Manifest) -> Counter[str]:
    counts: Counter[str] = Counter()
    for shard in manifest.shards:
        counts[shard.bucket] += shard.rows
    return counts


def _buckets(reader: ShardReader) -> str:
    counts = {name: len(rows) for name, rows in reader.buckets.items()}
    return _bars("Buckets (height x width)", counts)


def _reference_uses(reader: ShardReader) -> str:
    used = Counter(other for ids in reader.index["mismatched_ids"].to_pylist() for other in ids)
    times = Counter(used[sample_id] for sample_id in reader.index["sample_id"].to_pylist())
    named = {str(uses): times[uses] for uses in sorted(times)}
    return _bars("Pictures by how many times they are a mismatched reference", named)


def _bars(title: str, counts: Mapping[str, int]) -> str:
    most = max(counts.values())
    rows = "".join(
        f"<tr><td>{html.escape(name)}<td>{count}"
        f"<td><span class=bar style='width:{320 * count // most}px'></span>"
        for name, count in counts.items()
    )
    return f"<section><h2>{html.escape(title)}</h2><table>{rows}</table></section>"


def _hues(reader: ShardReader, shown: list[int]) -> str:
    """Hues of the shown pictures, as columns in their own colour."""
    counts = np.zeros(_HUES, np.int64)
    for row in reader.read(shown, ("image",)):
        hue, saturation, _ = cv2.split(cv2.cvtColor(decode_pixels(row["image"]), cv2.COLOR_RGB2HSV))
        counts += np.bincount(hue[saturation > _GREY_SATURATION] // (180 // _HUES), minlength=_HUES)
    columns = "".join(
        f"<i style='height:{100 * count // max(1, counts.max())}%;"
        f"background:hsl({number * 360 // _HUES} 70% 55%)'></i>"
        for number, count in enumerate(counts.tolist())
    )
    return f"<section><h2>Hues of the samples below</h2><div class=hues>{columns}</div></section>"


def _samples(reader: ShardReader, shown: list[int]) -> str:
    styles = [html.escape(style) for style in reader.manifest.sketch_styles]
    titles = ["picture", *styles, "mask (white: foreground)", "mismatched reference", "sample"]
    head = "".join(f"<th>{title}" for title in titles)
    body = "".join(_sheet_row(reader, index) for index in shown)
    return (
        f"<section><h2>{len(shown)} of {len(reader)} samples</h2>"
        f"<table><tr>{head}{body}</table></section>"
    )


def _split_statistics(folder: Path | str, split: str) -> dict[str, Any]:
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
    pngs = [encode_png(decode_pixels(picture)) for picture in pictures]
    cells = "".join(f"<td><img alt='' src='{_data_address(png)}'></td>" for png in pngs)
    return f"<tr>{cells}<td>{_caption(row)}</td></tr>"


def _caption(row: Row) -> str:
    tags = html.escape(", ".join(row["tags"]))
    return f"{html.escape(row['sample_id'])}<br><small>{tags}</small>"


def _data_address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
