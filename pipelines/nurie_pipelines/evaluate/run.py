"""``nurie evaluate``: a model's metrics on unseen samples under three reference protocols."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nurie.config.evaluate import EvaluateConfig
from nurie.data.shards import ShardReader
from nurie.evaluation.pairs import PROTOCOLS, PairPlan, choose_pairs
from nurie.tracking.mlflow_tracker import MlflowTracker
from nurie.tracking.registry import resolve_model
from nurie.tracking.store import tracking_uri
from nurie.tracking.tracker import TrackingUnavailable
from nurie_pipelines.cluster import connect
from nurie_pipelines.evaluate.actor import ColorizeAndMeasure
from nurie_pipelines.evaluate.outputs import FILES, Row, print_table, write_files

_log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig, parent_run_id: str | None = None) -> dict[str, Any]:
    """Colour test samples with right, same-palette and wrong references, and measure.

    Writes ``metrics.json``, ``metrics.md``, ``contact_sheet.png`` and ``per_sample.parquet`` into
    ``config.output``, logs them to MLflow as run ``evaluate`` and prints the table.

    Args:
        config: What to evaluate, and on what.
        parent_run_id: MLflow run to nest the evaluation under.

    Returns:
        The content of ``metrics.json``, plus ``run_id`` (None: MLflow did not answer).

    Raises:
        nurie.tracking.registry.RegistryError: No such model.
        nurie.checkpoints.manifest.CheckpointError: The model's files are damaged.
        nurie.data.manifest.ManifestError: The data set is unfinished or has no test split.
    """
    model = resolve_model(config.model, config.tracking.uri)
    reader = ShardReader(config.shards, "test")
    plan = choose_pairs(reader, config.num_samples, config.seed)
    connect()
    rows = _colour(config, model, plan)
    report, summary = write_files(config, model, reader, plan, rows)
    run_id = _log_to_mlflow(config, report, parent_run_id)
    print_table(report, summary, config.output)
    return report | {"run_id": run_id}


def _colour(config: EvaluateConfig, model: Path, plan: PairPlan) -> list[Row]:
    """Run the batch job; rows by sample and protocol, whatever order the actors finish in."""
    blocks = -(-len(plan.pairs) // config.batch_size)
    done = ray.data.from_items(
        [asdict(pair) for pair in plan.pairs], override_num_blocks=blocks
    ).map_batches(
        ColorizeAndMeasure,
        fn_constructor_kwargs={
            "model": model,
            "reference": config.model,
            "tracking_uri": tracking_uri(config.tracking.uri),
            "shards": config.shards,
            "num_inference_steps": config.num_inference_steps,
            "guidance_scale": config.guidance_scale,
            "device": "cuda" if config.use_gpu else "cpu",
        },
        batch_size=config.batch_size,
        compute=ray.data.ActorPoolStrategy(size=min(config.num_actors, blocks)),
        num_cpus=0 if config.use_gpu else 1,
        num_gpus=1 if config.use_gpu else 0,
    )
    rows: list[Row] = []
    with _progress() as progress:
        task = progress.add_task("colouring", total=len(plan.pairs))
        for row in done.iter_rows():
            rows.append(row | {"metrics": json.loads(row["metrics"])})
            progress.advance(task)
    return sorted(rows, key=lambda row: (row["order"], PROTOCOLS.index(row["protocol"])))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )


def _name(model: str) -> str:
    """What a model is called in a list of runs: ``nano`` of ``runs/nano/model``."""
    if model.startswith("models:/"):
        return model.removeprefix("models:/")
    folder = Path(model).absolute()
    return folder.parent.name if folder.name == "model" else folder.name


def _log_to_mlflow(
    config: EvaluateConfig, report: dict[str, Any], parent_run_id: str | None
) -> str | None:
    """Log the finished evaluation; without MLflow the files in ``config.output`` remain."""
    metrics = dict(report["comparisons"])
    for protocol, intervals in report["protocols"].items():
        metrics[f"{protocol}/n"] = max(interval["n"] for interval in intervals.values())
        for name, interval in intervals.items():
            metrics[f"{protocol}/{name}"] = interval["mean"]
            metrics[f"{protocol}/{name}/low"] = interval["low"]
            metrics[f"{protocol}/{name}/high"] = interval["high"]
    try:
        tracker = MlflowTracker(config.tracking.uri, config.tracking.experiment)
        run_id = tracker.start_run(
            f"{_name(config.model)}/evaluate",
            parent_run_id=parent_run_id,
            params=config.model_dump(mode="json", exclude={"tracking"}),
            tags={
                "stage": "evaluate",
                "model_digest": report["model_digest"],
                "shards_digest": report["shards_digest"],
            },
        )
        tracker.log_metrics(run_id, metrics)
        for name in FILES:
            tracker.log_artifact(run_id, config.output / name)
        tracker.end_run(run_id)
    except TrackingUnavailable as error:
        _log.warning("the evaluation in %s is not logged: %s", config.output, error)
        return None
    return run_id
