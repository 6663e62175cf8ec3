"""Stages that two trainings of a comparison have in common are trained once.

A stage is a function of its settings, of the backbone that it starts from, and of model, data, seed
and engine. An adapter's stage takes nothing from the stage of another adapter: a variant that only
drops one has the very weights of the run that trained both.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nurie.checkpoints.manifest import verify_manifest
from nurie.config.train import TrainConfig
from nurie.tracking.outbox import METRICS_FILE, SAMPLES_FOLDER
from nurie_pipelines.train.checkpoints import CheckpointStore
from nurie_pipelines.train.export import export_checkpoint
from nurie_pipelines.train.job import HOW_WATCHED
from nurie_pipelines.train.start import start_folder


def stage_identity(config: TrainConfig, index: int) -> dict[str, Any]:
    """All that decides which weights a stage trains; equal for stages that train the same."""
    stage = config.stages[index]
    base = [each for each in config.stages[:index] if each.adapter is None]
    rest = config.model_dump(mode="json", exclude={"name", "output", "stages", *HOW_WATCHED})
    return rest | {"chain": [each.model_dump(mode="json") for each in (*base, stage)]}


def take_over(config: TrainConfig, earlier: Sequence[TrainConfig]) -> dict[str, Path]:
    """Give a run the stages that earlier runs have trained already.

    Its folders get the weights as models, and the curves; ``train`` finds these stages done.

    Args:
        config: The run.
        earlier: Runs that may have trained the same.

    Returns:
        Kind of the stage -> folder of the stage that trained it, for all that were taken over.

    Raises:
        nurie.checkpoints.manifest.CheckpointError: A file of an earlier run is damaged.
    """
    taken: dict[str, Path] = {}
    start = start_folder(config)
    for index, stage in enumerate(config.stages):
        folder = config.output / stage.kind
        model = folder / "model"
        if not model.is_dir():
            trained = _trained_already(config, index, earlier)
            if trained is None:
                return taken
            _copy_curves(trained, folder)
            newest = CheckpointStore(trained / "checkpoints", 1).newest()
            assert newest is not None and newest[1].step == stage.steps
            export_checkpoint(newest[0], config.model, start, model)
            taken[stage.kind] = trained
        start = model
    return taken


def _trained_already(
    config: TrainConfig, index: int, earlier: Sequence[TrainConfig]
) -> Path | None:
    """Folder of the first finished stage with the same identity that has its last checkpoint."""
    wanted = stage_identity(config, index)
    for other in earlier:
        for number, stage in enumerate(other.stages):
            folder = other.output / stage.kind
            last = folder / "checkpoints" / f"step-{stage.steps:06d}"
            done = (folder / "model").is_dir() and last.is_dir()
            if done and stage_identity(other, number) == wanted:
                verify_manifest(last)
                return folder
    return None


def _copy_curves(trained: Path, folder: Path) -> None:
    """What MLflow shows of a stage; the machine's own curves stay with the run that used it."""
    folder.mkdir(parents=True, exist_ok=True)
    if (trained / METRICS_FILE).is_file():
        shutil.copyfile(trained / METRICS_FILE, folder / METRICS_FILE)
    if (trained / SAMPLES_FOLDER).is_dir():
        shutil.copytree(trained / SAMPLES_FOLDER, folder / SAMPLES_FOLDER, dirs_exist_ok=True)
    (folder / "trained_in.txt").write_text(f"{trained}\n")
