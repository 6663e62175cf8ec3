"""The tables, the page and the grid of finished ablations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from nurie.checkpoints.manifest import write_atomically
from nurie.config.evaluate import AblationsConfig
from nurie.config.train import MlflowConfig
from nurie.data.png import decode_png
from nurie.evaluation.page import Case, Gallery, render
from nurie.evaluation.pairs import PROTOCOLS
from nurie.evaluation.report import METRICS, SWAP_METRICS, Table, cell, markdown
from nurie.evaluation.sheet import grid
from nurie.evaluation.statistics import (
    Difference,
    Interval,
    adjust,
    bootstrap_crossed,
    compare_paired,
)
from nurie.evaluation.tasks import MODEL, SWAPS, ShardSource
from nurie_pipelines.evaluate.ablation_runs import Run
from nurie_pipelines.evaluate.comparison import Evaluation, print_all
from nurie_pipelines.evaluate.outputs import log_to_mlflow
from nurie_pipelines.evaluate.store import ResultStore

FILES = ("ablations.html", "ablations.md", "ablations.json", "grid.png")
"""Names of the written files."""


_SHOWN = METRICS | SWAP_METRICS
_TABLES = (*PROTOCOLS, SWAPS)


def report_ablations(config: AblationsConfig, runs: list[Run]) -> dict[str, Any]:
    """Compare finished evaluations; write, log and print the tables."""
    found = {
        name: [Evaluation.read(run.evaluate.output) for run in runs if run.variant == name]
        for name in config.trained
    }
    summary = {
        protocol: {
            metric: {name: bootstrap_crossed(values) for name, values in by_variant.items()}
            for metric, by_variant in metrics.items()
        }
        for protocol, metrics in ((protocol, _values(found, protocol)) for protocol in _TABLES)
        if metrics
    }
    differences = _differences(found, config.trained[0])
    tables, printed = (
        [_table(protocol, metrics, differences, shown) for protocol, metrics in summary.items()]
        for shown in (True, False)
    )
    report = {
        "name": config.name,
        "seeds": list(config.seeds),
        "variants": {
            name: variant.model_dump(mode="json", exclude_defaults=True)
            for name, variant in config.variants.items()
        },
        "steps": {stage.kind: stage.steps for stage in runs[0].train.stages},
        "protocols": {
            protocol: {
                metric: {
                    name: {
                        **interval._asdict(),
                        "difference": differences[protocol, metric, name]._asdict(),
                    }
                    for name, interval in by_variant.items()
                }
                for metric, by_variant in metrics.items()
            }
            for protocol, metrics in summary.items()
        },
    }
    _write(config, runs, report, [_variants_table(config), *tables])
    print_all(printed)
    return report


def _values(
    found: Mapping[str, list[Evaluation]], protocol: str
) -> dict[str, dict[str, np.ndarray]]:
    """Metric -> variant -> values [seeds, pictures], of pictures that all runs have."""
    rows = [run.rows for runs in found.values() for run in runs]
    keys = sorted(
        (key for key in rows[0] if key[0] == protocol and all(key in one for one in rows)), key=str
    )
    values: dict[str, dict[str, np.ndarray]] = {}
    for metric in _SHOWN:
        whole = [key for key in keys if all(one[key].get(metric) is not None for one in rows)]
        if whole:
            values[metric] = {
                name: np.array([[run.rows[key][metric] for key in whole] for run in runs])
                for name, runs in found.items()
            }
    return values


def _differences(
    found: Mapping[str, list[Evaluation]], base: str
) -> dict[tuple[str, str, str], Difference]:
    """(protocol, metric, variant) -> difference to the base, p with Holm's correction."""
    raw = {
        (protocol, metric, name): difference
        for protocol in _TABLES
        for metric, by_variant in _values(found, protocol).items()
        for name, difference in compare_variants(by_variant, base).items()
    }
    looked_at = {json.dumps(key): d.p for key, d in raw.items() if key[2] != base}
    corrected = {json.dumps(key): d.p for key, d in raw.items()} | adjust(looked_at)
    return {key: d._replace(p=corrected[json.dumps(key)]) for key, d in raw.items()}


def compare_variants(by_variant: Mapping[str, np.ndarray], base: str) -> dict[str, Difference]:
    """Variant -> paired difference to the base.

    The interval resamples seeds and pictures. The p is that of the pictures, means over seeds:
    three seeds are too few for a test of their own.

    Args:
        by_variant: Values [seeds, pictures].
        base: The variant that the others are compared with.
    """
    found = {}
    for name, values in by_variant.items():
        first, second = (each.mean(axis=0).tolist() for each in (by_variant[base], values))
        over_both = bootstrap_crossed(values - by_variant[base])
        paired = compare_paired(first, second)
        found[name] = paired._replace(low=over_both.low, high=over_both.high)
    return found


def _variants_table(config: AblationsConfig) -> Table:
    rows = []
    for name, variant in config.variants.items():
        changed = [f"{key} = {value}" for key, value in variant.settings.items()]
        changed += [f"without stage {kind}" for kind in variant.without_stages]
        if variant.same_as is not None:
            changed = [f"the same training as {variant.same_as}, shown there: {variant.reason}"]
        rows.append([name, "; ".join(changed) or "the training as it is"])
    return Table("Variants", ["variant", "what differs"], rows)


def _table(
    protocol: str,
    metrics: Mapping[str, Mapping[str, Interval]],
    differences: Mapping[tuple[str, str, str], Difference],
    intervals: bool = True,
) -> Table:
    names = list(next(iter(metrics.values())))
    rows = [
        [
            _SHOWN[metric].title,
            *(
                cell(interval, intervals) + mark(metric, differences[protocol, metric, name])
                for name, interval in by_variant.items()
            ),
            _SHOWN[metric].better,
        ]
        for metric, by_variant in metrics.items()
    ]
    count = max(interval.n for interval in metrics[next(iter(metrics))].values())
    note = (
        f"better, worse: than {names[0]}, p < 0.05 over pictures after Holm's correction, and the "
        "interval of the difference over seeds and pictures has one sign; no word: perhaps chance."
    )
    return Table(f"`{protocol}`, n={count}", ["", *names, "better"], rows, note)


def mark(metric: str, difference: Difference) -> str:
    """The word for a difference that is more than chance, else none."""
    if difference.p >= 0.05 or difference.low <= 0 <= difference.high:
        return ""
    better = (difference.mean > 0) == (_SHOWN[metric].better == "higher")
    return " better" if better else " worse"


def _write(
    config: AblationsConfig, runs: list[Run], report: dict[str, Any], tables: list[Table]
) -> None:
    steps = ", ".join(f"{kind} {count}" for kind, count in report["steps"].items())
    head = (
        f"`{config.name}`: {len(config.trained)} trained variants, seeds "
        f"{', '.join(map(str, config.seeds))}, steps {steps}. Means over seeds with 95% intervals, "
        "resampling seeds and pictures; differences are paired by picture."
    )
    headers, lines = _grid_pictures(config, runs)
    gallery = [Case("", dict(zip(headers, line, strict=True))) for line in lines]
    shown = Gallery("Pictures", f"Reference `wrong`, seed {config.seeds[0]}.", gallery)
    output = config.output
    write_atomically(output / FILES[0], render("Ablations", head, tables, [shown], {}).encode())
    write_atomically(output / FILES[1], markdown("Ablations", head, tables).encode())
    write_atomically(output / FILES[2], (json.dumps(report, indent=1) + "\n").encode())
    grid([[Image.fromarray(p) for p in line] for line in lines], headers).save(output / FILES[3])
    tracking = MlflowConfig(uri=config.tracking_uri, experiment=config.name)
    metrics = {
        f"{name}/{protocol}/{metric}": value["mean"]
        for protocol, by_metric in report["protocols"].items()
        for metric, by_variant in by_metric.items()
        for name, value in by_variant.items()
    }
    params = config.model_dump(mode="json", exclude={"tracking_uri"})
    log_to_mlflow(tracking, config.name, output, metrics, params, {"stage": "ablations"}, FILES)


def _grid_pictures(
    config: AblationsConfig, runs: list[Run]
) -> tuple[list[str], list[list[np.ndarray]]]:
    """Sketch, reference, truth and every variant's result, of the first seed."""
    first = [run for run in runs if run.seed == config.seeds[0]]
    source = ShardSource(first[0].evaluate.shards)
    stores = {run.variant: ResultStore(run.evaluate.output) for run in first}
    rows = [
        row
        for row in stores[first[0].variant].rows()
        if (row["task"].system, row["task"].protocol) == (MODEL, "wrong")
    ]
    rows = sorted(rows, key=lambda row: row["task"].order)[: config.grid_rows]
    keys = [row["key"] for row in rows]
    made = {name: store.pictures(keys) for name, store in stores.items()}
    lines = []
    for row in rows:
        order = source.orders(row["task"])[0]
        assert order.sample.image is not None
        results = [decode_png(found[row["key"]][0], 3) for found in made.values()]
        sketch = np.repeat(order.sample.sketch[..., None], 3, axis=2)
        lines.append([sketch, order.reference.image, order.sample.image, *results])
    return ["sketch", "reference", "truth", *made], lines
