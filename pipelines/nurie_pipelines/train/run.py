"""The driver of a training run: the chain of stages, its MLflow runs and the final model."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM

import yaml
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console

from nurie.checkpoints.manifest import publish_folder, verify_manifest
from nurie.config.train import TrainConfig
from nurie.data.manifest import MANIFEST_NAME, read_manifest
from nurie.inference.folder import complete_folder
from nurie.tracking.mlflow_tracker import MlflowTracker
from nurie.tracking.outbox import OutboxSender
from nurie.tracking.registry import register_model
from nurie.tracking.tracker import RunStatus, TrackingUnavailable
from nurie_pipelines.cluster import WORKER_ENVIRONMENT, connect
from nurie_pipelines.train.export import copy_in_half_precision, export_checkpoint
from nurie_pipelines.train.failures import RecordFailures
from nurie_pipelines.train.interrupts import TrainingInterrupted, stop_at_a_step
from nurie_pipelines.train.job import StageJob, train_stage
from nurie_pipelines.train.progress import follow_progress
from nurie_pipelines.train.start import start_folder

console = Console()

_MAY_CHANGE = {
    "engine",
    "tracking",
    "checkpoint_every",
    "keep_checkpoints",
    "sample_every",
    "stop_without_checkpoint",
}
"""Settings with which a run may be continued differently."""


class TrainingStopped(ValueError):
    """The workers have ended for a reason that starting them again would not mend."""


def train(config: TrainConfig, from_scratch: bool = False) -> Path:
    """Runs or continues a training run.

    Args:
        config: The run; the same ``output`` continues what is there.
        from_scratch: Ignore ``init_from``: fresh weights for everything that is trained.

    Returns:
        The final model folder, ``output/model``.

    Raises:
        ValueError: If ``output`` belongs to a run with other settings.
    """
    if from_scratch:
        config = config.model_copy(update={"init_from": None})
    _claim_output(config)
    final = config.output / "model"
    tracker = MlflowTracker(config.tracking.uri, config.tracking.experiment)
    with _run(tracker, config, "run", config.name) as parent:
        _log_data(tracker, config, parent)
        if not _is_whole(final):
            connect(config.engine.num_workers + 2)
            start = start_folder(config)
            for index in range(len(config.stages)):
                start = _train_stage(config, index, start, tracker, parent)
            _assemble(config, start, final)
        if config.tracking.registered_model:
            version = register_model(
                config.tracking.uri,
                final,
                config.tracking.registered_model,
                config.tracking.alias,
                parent,
            )
            console.print(f"registered {config.tracking.registered_model} version {version}")
    return final


def _claim_output(config: TrainConfig) -> None:
    """Writes the resolved configuration, or compares it with the one that is there."""
    path = config.output / "resolved.yaml"
    resolved = config.model_dump(mode="json")
    if path.exists():
        before = yaml.safe_load(path.read_text())
        different = [key for key in resolved if before.get(key) != resolved[key]]
        # How a run is executed and watched may change; what it computes may not.
        different = [key for key in different if key not in _MAY_CHANGE]
        if different:
            raise ValueError(
                f"{config.output}: belongs to a run with other settings ({', '.join(different)} "
                "differ); choose another output or remove that folder"
            )
    config.output.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(resolved, sort_keys=False))


@contextmanager
def _run(
    tracker: MlflowTracker, config: TrainConfig, key: str, name: str, parent: str | None = None
) -> Iterator[str]:
    """An MLflow run that a continued job finds again through ``output/runs.json``."""
    path = config.output / "runs.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    params = config.model_dump(mode="json") if parent is None else None
    run_id = tracker.start_run(name, parent_run_id=parent, run_id=known.get(key), params=params)
    path.write_text(json.dumps({**known, key: run_id}, indent=1))
    try:
        yield run_id
    except KeyboardInterrupt:
        _end(tracker, run_id, "KILLED")
        raise
    except Exception:
        _end(tracker, run_id, "FAILED")
        raise
    _end(tracker, run_id, "FINISHED")


def _end(tracker: MlflowTracker, run_id: str, status: RunStatus) -> None:
    """Closes an MLflow run; an unreachable server must not hide how training ended."""
    try:
        tracker.end_run(run_id, status)
    except TrackingUnavailable as error:
        message = f"MLflow run {run_id} stays open: {error}"
        console.print(message, style="yellow", markup=False)


def _log_data(tracker: MlflowTracker, config: TrainConfig, run_id: str) -> None:
    """Adds what the run is trained on: the data set's manifest, and what was left out of it."""
    shards = config.data.shards
    manifest = read_manifest(shards)
    tracker.log_artifact(run_id, shards / MANIFEST_NAME, "data")
    if manifest.quarantine:
        table = config.output / "quarantine.csv"
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "step", "reason"])
            writer.writerows(
                [entry.file, entry.step, entry.reason] for entry in manifest.quarantine
            )
        tracker.log_artifact(run_id, table, "data")


def _is_whole(folder: Path) -> bool:
    return folder.is_dir() and bool(verify_manifest(folder))


def _train_stage(
    config: TrainConfig, index: int, start: Path | None, tracker: MlflowTracker, parent: str
) -> Path:
    """Trains one stage unless it is done; returns a model folder with its weights."""
    kind = config.stages[index].kind
    folder = config.output / kind
    exported = folder / "model"
    if _is_whole(exported):
        console.print(f"stage [bold]{kind}[/] is done")
        return exported
    job = StageJob(config, index, start, folder)
    with _run(tracker, config, kind, f"{config.name}/{kind}", parent) as run_id:
        tracker.log_params(run_id, job.settings.model_dump(mode="json"))
        with OutboxSender(tracker, run_id, folder), follow_progress(job, console):
            _fit(job)
        _export(job, exported)
    return exported


def _fit(job: StageJob) -> None:
    """Runs the Ray Train job of a stage.

    Raises:
        TrainingInterrupted: It was asked to end before its last step.
        TrainingStopped: Its workers cannot go on.
    """
    job.start_anew()
    with stop_at_a_step(job, console) as signals:
        _trainer(job).fit()
    reason = job.reason_of_stop()
    if reason is not None:
        raise TrainingStopped(f"{job.folder.name}: {reason}")
    newest = job.checkpoints().newest()
    step = 0 if newest is None else newest[1].step
    if step < job.settings.steps:
        message = f"stage {job.kind} stopped after step {step}; the same command continues"
        raise TrainingInterrupted(message, 128 + (signals[0] if signals else SIGTERM))


def _trainer(job: StageJob) -> TorchTrainer:
    engine = job.config.engine
    environment = dict(WORKER_ENVIRONMENT)
    if not engine.use_gpu:
        environment["DS_ACCELERATOR"] = "cpu"
    workers = engine.num_workers
    resources = {"GPU" if engine.use_gpu else "CPU": 1.0, **engine.worker_resources}
    return TorchTrainer(
        train_stage,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if engine.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers if engine.min_workers is None else (engine.min_workers, workers),
            use_gpu=engine.use_gpu,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=f"{job.config.name}-{job.kind}",
            storage_path=str(job.config.output / "ray"),
            failure_config=FailureConfig(max_failures=engine.max_failures),
            callbacks=[RecordFailures(job.folder)],
            worker_runtime_env={"env_vars": environment},
        ),
    )


def _export(job: StageJob, folder: Path) -> None:
    """Writes the model after a stage: start weights with the trained ones (averaged, if kept)."""
    newest = job.checkpoints().newest()
    if newest is None or newest[1].step < job.settings.steps:
        raise ValueError(f"{job.folder}: the stage ended without its last checkpoint")
    export_checkpoint(newest[0], job.config.model, job.start_from, folder)


def _assemble(config: TrainConfig, weights: Path | None, final: Path) -> None:
    """Joins trained weights and frozen components to a model folder, published at once."""
    assert weights is not None
    partial_folder = final.with_name(f".partial-{final.name}")
    shutil.rmtree(partial_folder, ignore_errors=True)
    copy_in_half_precision(weights, config.model, partial_folder)
    complete_folder(partial_folder, config.components, config.model)
    publish_folder(partial_folder, final, replace=True)
    console.print(f"model written to {final}", markup=False, soft_wrap=True)
