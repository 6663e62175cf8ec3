"""``nurie ablate``: train and measure variants, and say what each part of the method is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from nurie.checkpoints.manifest import write_atomically
from nurie.config.evaluate import AblationsConfig, EvaluateConfig, VariantConfig
from nurie.config.loader import load_config, read_yaml
from nurie.config.train import MlflowConfig, TrainConfig
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
from nurie.evaluation.tasks import SWAPS, ShardSource
from nurie_pipelines.evaluate.comparison import Evaluation, print_all
from nurie_pipelines.evaluate.outputs import log_to_mlflow
from nurie_pipelines.evaluate.store import ResultStore

FILES = ("ablations.html", "ablations.md", "ablations.json", "grid.png")
"""Names of the written files."""

_SHOWN = METRICS | SWAP_METRICS
_TABLES = (*PROTOCOLS, SWAPS)


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        variant: Name of the variant.
        seed: Seed of the training.
        train: The training.
        evaluate: The evaluation of its model.
    """

    variant: str
    seed: int
    train: TrainConfig
    evaluate: EvaluateConfig


def plan_runs(config: AblationsConfig) -> list[Run]:
    """All trainings and evaluations, seed by seed, so that an early stop leaves whole seeds.

    Raises:
        ConfigError: A setting of a variant is wrong.
    """
    return [
        _run(config, name, variant, seed)
        for seed in config.seeds
        for name, variant in config.variants.items()
    ]


def ablate(config: AblationsConfig) -> dict[str, Any]:
    """Train and measure what is not done yet, then compare and write the tables.

    Returns:
        The content of ``ablations.json``.

    Raises:
        ConfigError: A setting of a variant is wrong; found before anything is trained.
    """
    from nurie_pipelines.evaluate.run import evaluate
    from nurie_pipelines.train.run import train

    runs = plan_runs(config)
    console = Console()
    for number, run in enumerate(runs, start=1):
        console.print(f"[bold]{run.variant}[/], seed {run.seed} ({number} of {len(runs)})")
        # A whole evaluation needs no look at the training it came from.
        if not (run.evaluate.output / "metrics.json").is_file():
            train(run.train)
            evaluate(run.evaluate)
    return report_ablations(config, runs)


def report_ablations(config: AblationsConfig, runs: list[Run]) -> dict[str, Any]:
    """Compare finished evaluations; write, log and print the tables."""
    found = {
        name: [Evaluation.read(run.evaluate.output) for run in runs if run.variant == name]
        for name in config.variants
    }
    summary = {
        protocol: {
            metric: {name: bootstrap_crossed(values) for name, values in by_variant.items()}
            for metric, by_variant in metrics.items()
        }
        for protocol, metrics in ((protocol, _values(found, protocol)) for protocol in _TABLES)
        if metrics
    }
    differences = _differences(found, next(iter(config.variants)))
    tables = [_table(protocol, metrics, differences) for protocol, metrics in summary.items()]
    report = {
        "name": config.name,
        "seeds": list(config.seeds),
        "steps": {stage.kind: stage.steps for stage in runs[0].train.stages},
        "protocols": {
            protocol: {
                metric: {
                    name: {
                        **interval._asdict(),
                        "p": differences.get((protocol, metric, name), _NO_DIFFERENCE).p,
                    }
                    for name, interval in by_variant.items()
                }
                for metric, by_variant in metrics.items()
            }
            for protocol, metrics in summary.items()
        },
    }
    _write(config, runs, report, tables)
    return report


_NO_DIFFERENCE = Difference(0.0, 0.0, 0.0, 1.0, 0)


def _run(config: AblationsConfig, name: str, variant: VariantConfig, seed: int) -> Run:
    folder = config.output / name / f"seed-{seed}"
    settings: dict[str, Any] = dict(config.settings)
    if variant.without_stages:
        stages = read_yaml(config.train).get("stages", [])
        settings["stages"] = [s for s in stages if s["kind"] not in variant.without_stages]
    settings |= variant.settings
    tracking = {"tracking.uri": config.tracking_uri, "tracking.experiment": config.name}
    settings |= tracking | {
        "tracking.registered_model": None,
        "name": f"{config.name}-{name}-{seed}",
        "output": str(folder),
        "seed": seed,
    }
    train = load_config(config.train, settings)
    measured = config.evaluate_settings | tracking
    measured |= {"model": str(folder / "model"), "output": str(folder / "evaluation")}
    evaluate = load_config(config.evaluate, measured)
    # A file of another kind lacks these settings, which the loader has said by now.
    assert isinstance(train, TrainConfig) and isinstance(evaluate, EvaluateConfig)
    return Run(name, seed, train, evaluate)


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
    """(protocol, metric, variant) -> paired difference to the base, means over seeds; p by Holm."""
    raw: dict[tuple[str, str, str], Difference] = {}
    for protocol in _TABLES:
        for metric, by_variant in _values(found, protocol).items():
            first = by_variant[base].mean(axis=0).tolist()
            for name, values in by_variant.items():
                if name != base:
                    second = values.mean(axis=0).tolist()
                    raw[protocol, metric, name] = compare_paired(first, second)
    corrected = adjust({json.dumps(key): difference.p for key, difference in raw.items()})
    return {key: d._replace(p=corrected[json.dumps(key)]) for key, d in raw.items()}


def _table(
    protocol: str,
    metrics: Mapping[str, Mapping[str, Interval]],
    differences: Mapping[tuple[str, str, str], Difference],
) -> Table:
    names = list(next(iter(metrics.values())))
    rows = [
        [
            _SHOWN[metric].title,
            *(
                cell(interval) + _mark(metric, differences.get((protocol, metric, name)))
                for name, interval in by_variant.items()
            ),
            _SHOWN[metric].better,
        ]
        for metric, by_variant in metrics.items()
    ]
    count = max(interval.n for interval in metrics[next(iter(metrics))].values())
    note = (
        f"+ better, - worse than {names[0]} with p < 0.05 after Holm's correction; else by chance."
    )
    return Table(f"`{protocol}`, n={count}", ["", *names, "better"], rows, note)


def _mark(metric: str, difference: Difference | None) -> str:
    if difference is None or difference.p >= 0.05:
        return ""
    return " +" if (difference.mean > 0) == (_SHOWN[metric].better == "higher") else " -"


def _write(
    config: AblationsConfig, runs: list[Run], report: dict[str, Any], tables: list[Table]
) -> None:
    steps = ", ".join(f"{kind} {count}" for kind, count in report["steps"].items())
    head = (
        f"`{config.name}`: {len(config.variants)} variants, seeds "
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
    print_all(tables)
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
    rows = [row for row in stores[first[0].variant].rows() if row["task"].protocol == "wrong"]
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
