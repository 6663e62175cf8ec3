"""The driver of a training run: the chain of stages, its MLflow runs and the final model."""

from __future__ import annotations

from pathlib import Path
from signal import SIGTERM
from threading import Thread

import yaml
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console

from nurie.checkpoints.manifest import verify_manifest
from nurie.config.train import TrainConfig
from nurie.planning.operations import write_operations
from nurie.tracking.origin import CONFIG_FILE
from nurie.tracking.registry import register_model
from nurie_pipelines.cluster import WORKER_ENVIRONMENT, ClusterLost, connect
from nurie_pipelines.train.export import assemble_model, export_checkpoint
from nurie_pipelines.train.failures import RecordFailures
from nurie_pipelines.train.interrupts import TrainingInterrupted, beside_the_cluster, stop_at_a_step
from nurie_pipelines.train.job import HOW_WATCHED, StageJob, train_stage
from nurie_pipelines.train.progress import follow_progress
from nurie_pipelines.train.records import RunRecords
from nurie_pipelines.train.start import start_folder

console = Console()

_MAY_CHANGE = {"engine", *HOW_WATCHED}
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
    records = RunRecords(config, console)
    with records.run():
        if not _is_whole(final):
            connect(config.engine.num_workers + 2)
            start = start_folder(config)
            records.starts_from(start)
            for index in range(len(config.stages)):
                start = _train_stage(config, index, start, records)
            _assemble(config, start, final)
        for index in range(len(config.stages)):
            records.deliver(_job(config, index, None))
        if config.tracking.registered_model:
            version = register_model(
                config.tracking.uri,
                final,
                config.tracking.registered_model,
                config.tracking.alias,
                records.parent,
                records.lineage(),
            )
            console.print(f"registered {config.tracking.registered_model} version {version}")
    return final


def _claim_output(config: TrainConfig) -> None:
    """Writes the resolved configuration, or compares it with the one that is there."""
    path = config.output / CONFIG_FILE
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


def _is_whole(folder: Path) -> bool:
    return folder.is_dir() and bool(verify_manifest(folder))


def _job(config: TrainConfig, index: int, start: Path | None) -> StageJob:
    return StageJob(config, index, start, config.output / config.stages[index].kind)


def _train_stage(config: TrainConfig, index: int, start: Path | None, records: RunRecords) -> Path:
    """Trains one stage unless it is done; returns a model folder with its weights."""
    job = _job(config, index, start)
    exported = job.folder / "model"
    if _is_whole(exported):
        console.print(f"stage [bold]{job.kind}[/] is done")
        return exported
    with records.stage(job):
        with follow_progress(job, console):
            _fit(job)
        _export(job, exported)
    return exported


def _fit(job: StageJob) -> None:
    """Runs the Ray Train job of a stage.

    Raises:
        ClusterLost: Its private cluster has ended, and nobody asked it to.
        TrainingInterrupted: It was asked to end before its last step.
        TrainingStopped: Its workers cannot go on.
    """
    job.start_anew()
    counting = Thread(
        target=write_operations,
        args=(job.operations_file, job.config.model, job.config.stages[job.index]),
        daemon=True,
    )
    counting.start()  # while the workers start
    with stop_at_a_step(job, console) as signals:
        try:
            beside_the_cluster(_trainer(job).fit)
        except ClusterLost:
            if not signals:  # else whoever asked the run to end has asked its cluster too
                raise
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
    assemble_model(weights, config, final)
    console.print(f"model written to {final}", markup=False, soft_wrap=True)
