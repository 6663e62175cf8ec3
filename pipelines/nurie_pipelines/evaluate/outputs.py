"""What an evaluation leaves behind: table, contact sheet, rows, and the table on the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table

from nurie.checkpoints.manifest import manifest_digest, write_atomically
from nurie.config.evaluate import EvaluateConfig
from nurie.data.data_folder import DataFolder
from nurie.data.manifest import MANIFEST_NAME
from nurie.data.png import decode_png
from nurie.data.shards import ShardReader
from nurie.evaluation.measure import COLUMNS, Picture
from nurie.evaluation.metrics import shape_change
from nurie.evaluation.pairs import PROTOCOLS, PairPlan
from nurie.evaluation.report import (
    Interval,
    Measured,
    bootstrap,
    compare,
    markdown,
    summarize,
    table,
)
from nurie.evaluation.sheet import grid

Row = dict[str, Any]
Summary = dict[str, dict[str, Interval]]

FILES = ("contact_sheet.png", "metrics.md", "metrics.json", "per_sample.parquet")
"""Names of the written files."""


def write_files(
    config: EvaluateConfig, model: Path, reader: ShardReader, plan: PairPlan, rows: Sequence[Row]
) -> tuple[dict[str, Any], Summary]:
    """Write all files into ``config.output``, ``metrics.json`` last.

    Returns:
        The content of ``metrics.json``, and the means by protocol and metric.
    """
    output = config.output
    output.mkdir(parents=True, exist_ok=True)
    summary = summarize(Measured(row["sample_id"], row["protocol"], row["metrics"]) for row in rows)
    report = _report(config, model, summary, rows) | {"skipped": plan.skipped}
    _write_rows(rows, output / "per_sample.parquet")
    contact_sheet(reader, rows, config.sheet_rows).save(output / "contact_sheet.png")
    write_atomically(output / "metrics.md", markdown(report, summary).encode())
    write_atomically(output / "metrics.json", (json.dumps(report, indent=1) + "\n").encode())
    return report, summary


def print_table(report: dict[str, Any], summary: Summary, output: Path) -> None:
    """Print the means and the comparisons; the intervals are in ``metrics.md``."""
    console = Console()
    header, *body = table(summary, intervals=False)
    shown = Table(*header, title=f"{report['model']} on {report['num_samples']} unseen samples")
    for cells in body:
        shown.add_row(*cells)
    console.print(shown)
    for name, value in report["comparisons"].items():
        console.print(f"  {name:42s} {value:8.3f}", highlight=False)
    for protocol, reason in report["skipped"].items():
        console.print(f"  left out of {protocol}: {reason}", highlight=False)
    console.print(f"  {output / 'contact_sheet.png'}", highlight=False, soft_wrap=True)


def contact_sheet(reader: ShardReader, rows: Sequence[Row], limit: int) -> Image.Image:
    """Sketch, truth, then reference and result of every protocol; one line per sample."""
    protocols = [name for name in PROTOCOLS if any(row["protocol"] == name for row in rows)]
    by_key = {(row["order"], row["protocol"]): row for row in rows}
    lines = []
    for order in sorted({row["order"] for row in rows})[:limit]:
        row = by_key[order, "own"]
        sample = _picture(reader, row["sample_id"], row["sketch"])
        line = [Image.fromarray(sample.sketch), Image.fromarray(sample.image)]
        for protocol in protocols:
            line += _reference_and_result(reader, by_key.get((order, protocol)), line[0].size)
        lines.append(line)
    names = {"own": "own picture", "same_palette": "same palette", "wrong": "wrong reference"}
    columns = [text for protocol in protocols for text in (names[protocol], "> result")]
    return grid(lines, ["sketch", "truth", *columns])


def _reference_and_result(
    reader: ShardReader, row: Row | None, size: tuple[int, int]
) -> list[Image.Image]:
    if row is None:
        return [Image.new("RGB", size, (240, 240, 240))] * 2
    reference = _picture(reader, row["reference_id"])
    return [Image.fromarray(reference.image), Image.open(BytesIO(row["result"]))]


def _report(
    config: EvaluateConfig, model: Path, summary: Summary, rows: Sequence[Row]
) -> dict[str, Any]:
    comparisons = compare(summary)
    changes = _shape_changes(rows)
    if changes:
        comparisons["shape_change/own_to_wrong"] = bootstrap(changes).mean
    return {
        "model": config.model,
        "model_digest": manifest_digest(model),
        "shards": str(config.shards),
        "shards_digest": DataFolder(config.shards).sha256(MANIFEST_NAME),
        "num_samples": len({row["sample_id"] for row in rows}),
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        "seed": config.seed,
        "protocols": {
            protocol: {name: interval._asdict() for name, interval in metrics.items()}
            for protocol, metrics in summary.items()
        },
        "comparisons": comparisons,
    }


def _shape_changes(rows: Sequence[Row]) -> list[float]:
    """Of every sample, how much its shapes change when the right reference becomes a wrong one."""
    results = {(row["order"], row["protocol"]): row["result"] for row in rows}
    orders = sorted({order for order, _ in results})
    return [
        shape_change(decode_png(results[order, "own"], 3), decode_png(results[order, "wrong"], 3))
        for order in orders
        if (order, "own") in results and (order, "wrong") in results
    ]


def _write_rows(rows: Sequence[Row], path: Path) -> None:
    names = sorted({name for row in rows for name in row["metrics"]})
    keys = ("sample_id", "reference_id", "protocol", "style", "seed")
    flat = [
        {key: row[key] for key in keys} | {name: row["metrics"].get(name) for name in names}
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(flat), path)


def _picture(reader: ShardReader, sample_id: str, sketch: int = 0) -> Picture:
    return Picture.of(reader.read([reader.row_of[sample_id]], COLUMNS)[0], sketch)
