"""What an evaluation leaves behind: tables, page, contact sheet, rows, and an MLflow run."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table as RichTable

from nurie.checkpoints.manifest import write_atomically
from nurie.config.train import MlflowConfig
from nurie.data.png import decode_png
from nurie.evaluation.distributions import DISTANCES
from nurie.evaluation.lines import shape_change
from nurie.evaluation.page import render
from nurie.evaluation.report import (
    METRICS,
    Measured,
    Summary,
    Table,
    comparisons_table,
    describe,
    markdown,
    summarize,
    tables,
)
from nurie.evaluation.statistics import bootstrap
from nurie.evaluation.tasks import GRAM, MODEL, SWAPS
from nurie.tracking.mlflow_tracker import MlflowTracker
from nurie.tracking.store import tracking_uri
from nurie.tracking.tracker import TrackingUnavailable
from nurie_pipelines.evaluate.cases import Cases
from nurie_pipelines.evaluate.store import ResultStore, Row

_log = logging.getLogger(__name__)

FILES = ("contact_sheet.png", "report.html", "metrics.md", "metrics.json", "per_sample.parquet")
"""Names of the written files."""

LOGGED_FILE = "logged.json"
"""Beside them: the tracking store, the experiment and the run, if MLflow answered."""

_MAX_SHAPE_CHANGES = 256


def summarize_rows(rows: Sequence[Row]) -> Summary:
    """Means with intervals of all scored tasks, with KID and FID where there are features."""
    summary = summarize(
        Measured(row["task"].sample_id, row["task"].protocol, row["metrics"], row["task"].system)
        for row in rows
    )
    for system, protocols in summary.items():
        for protocol, metrics in protocols.items():
            chosen = [
                row
                for row in rows
                if (row["task"].system, row["task"].protocol) == (system, protocol)
                and row["features"] is not None
            ]
            if len(chosen) > 1:
                sets = [np.array([r[c] for r in chosen]) for c in ("features", "truth_features")]
                metrics |= {name: distance(*sets) for name, distance in DISTANCES.items()}
    return summary


def shape_changes(rows: Sequence[Row], store: ResultStore) -> list[float]:
    """How much the model's shapes change when the right reference becomes a wrong one.

    Of the first 256 samples that have both.
    """
    keys = {
        (row["task"].order, row["task"].protocol): row["key"]
        for row in rows
        if row["task"].system == MODEL
    }
    orders = [order for order, protocol in keys if protocol == "own" and (order, "wrong") in keys]
    orders = sorted(orders)[:_MAX_SHAPE_CHANGES]
    pictures = store.pictures([keys[o, p] for o in orders for p in ("own", "wrong")])
    changes = []
    for order in orders:
        own, wrong = (decode_png(pictures[keys[order, p]][0], 3) for p in ("own", "wrong"))
        changes.append(shape_change(own, wrong))
    return changes


def write_files(
    output: Path, report: dict[str, Any], summary: Summary, cases: Cases, sheet_rows: int
) -> list[Table]:
    """Write all files into ``output``, ``metrics.json`` last; returns the tables."""
    output.mkdir(parents=True, exist_ok=True)
    found = tables(summary)
    if report["comparisons"]:
        found.append(comparisons_table(report["comparisons"]))
    head = describe(report)
    notes = {f"Left out of {what}": reason for what, reason in report["skipped"].items()}
    notes |= {
        metric.title: metric.meaning
        for name, metric in METRICS.items()
        if any(name in metrics for protocols in summary.values() for metrics in protocols.values())
    }
    notes |= {f"Network {role}": digest for role, digest in report["networks"].items()}
    text = markdown("Evaluation", head, found, report["skipped"])
    page = render("Evaluation", head, found, cases.galleries(), notes)
    _write_rows(cases.rows, output / "per_sample.parquet")
    cases.sheet(sheet_rows).save(output / "contact_sheet.png")
    write_atomically(output / "report.html", page.encode())
    write_atomically(output / "metrics.md", text.encode())
    write_atomically(output / "metrics.json", (json.dumps(report, indent=1) + "\n").encode())
    return found


def as_json(summary: Summary, main: str) -> dict[str, Any]:
    """All intervals as plain values: of the main system, of peers, of the swaps by system."""
    plain = {
        system: {
            protocol: {name: interval._asdict() for name, interval in metrics.items()}
            for protocol, metrics in protocols.items()
        }
        for system, protocols in summary.items()
    }
    swaps = {system: found.pop(SWAPS) for system, found in plain.items() if SWAPS in found}
    return {"protocols": plain.pop(main), "peers": plain, "disentanglement": swaps}


def print_tables(title: str, report: Mapping[str, Any], summary: Summary, output: Path) -> None:
    """Print the means and the comparisons; the intervals are in ``metrics.md``."""
    console = Console()
    console.print(title, highlight=False, markup=False)
    for table in tables(summary, intervals=False):
        shown = RichTable(*table.header, title=table.title)
        for cells in table.rows:
            shown.add_row(*cells)
        console.print(shown)
    for name, value in report["comparisons"].items():
        console.print(f"  {name:42s} {value:8.3f}", highlight=False)
    for what, reason in report["skipped"].items():
        console.print(f"  left out of {what}: {reason}", highlight=False)
    for name in ("report.html", "contact_sheet.png"):
        console.print(f"  {output / name}", highlight=False, soft_wrap=True)


def log_to_mlflow(
    tracking: MlflowConfig,
    name: str,
    output: Path,
    metrics: Mapping[str, float],
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    files: Sequence[str] = FILES,
) -> str | None:
    """Log a finished evaluation; without MLflow the files in ``output`` remain.

    Returns:
        The run, or None where MLflow did not answer.
    """
    run_id = None
    try:
        tracker = MlflowTracker(tracking.uri, tracking.experiment)
        run_id = tracker.start_run(name, params=params, tags=tags)
        tracker.log_metrics(run_id, metrics)
        for file in files:
            tracker.log_artifact(run_id, output / file)
        tracker.end_run(run_id)
    except TrackingUnavailable as error:
        _log.warning("the evaluation in %s is not logged: %s", output, error)
        run_id = None
    place = {"uri": tracking_uri(tracking.uri), "experiment": tracking.experiment}
    text = json.dumps(place | {"run_id": run_id}, indent=1) + "\n"
    write_atomically(output / LOGGED_FILE, text.encode())
    return run_id


def logged_in(output: Path) -> MlflowConfig:
    """Where an evaluation was logged; the default place if it does not say."""
    path = output / LOGGED_FILE
    if not path.is_file():
        return MlflowConfig()
    place = json.loads(path.read_text())
    return MlflowConfig(uri=place["uri"], experiment=place["experiment"])


def mlflow_metrics(report: Mapping[str, Any], summary: Summary) -> dict[str, float]:
    """Every number with its ends; those of peers below ``peers/``."""
    metrics: dict[str, float] = dict(report["comparisons"])
    for system, protocols in summary.items():
        prefix = "" if system == MODEL else f"peers/{system}/"
        for protocol, intervals in protocols.items():
            metrics[f"{prefix}{protocol}/n"] = max(i.n for i in intervals.values())
            for name, interval in intervals.items():
                metrics[f"{prefix}{protocol}/{name}"] = interval.mean
                metrics[f"{prefix}{protocol}/{name}/low"] = interval.low
                metrics[f"{prefix}{protocol}/{name}/high"] = interval.high
    return metrics


def mean_shape_change(rows: Sequence[Row], store: ResultStore) -> dict[str, float]:
    """The comparison ``shape_change/own_to_wrong``, where both references were given."""
    changes = shape_changes(rows, store)
    return {"shape_change/own_to_wrong": bootstrap(changes).mean} if changes else {}


def _write_rows(rows: Sequence[Row], path: Path) -> None:
    measured = [row for row in rows if row["task"].protocol != GRAM]
    names = sorted({name for row in measured for name in row["metrics"]})
    flat = [
        {
            "system": row["task"].system,
            "sample_id": row["task"].sample_id,
            "reference_id": row["task"].reference_ids[0],
            "protocol": row["task"].protocol,
            "style": row["style"],
            "seed": row["task"].seed,
            "key": row["key"],
        }
        | {name: row["metrics"].get(name) for name in names}
        for row in measured
    ]
    pq.write_table(pa.Table.from_pylist(flat), path)
