"""What a run starts from: a model folder, a checkpoint, or a registered model."""

from __future__ import annotations

import shutil
from pathlib import Path

from nurie.checkpoints.manifest import publish_folder, verify_manifest
from nurie.config.train import TrainConfig
from nurie.tracking.registry import REGISTERED, resolve_model
from nurie_pipelines.train.checkpoints import CheckpointStore
from nurie_pipelines.train.export import export_checkpoint

START_FOLDER = "start"
"""In the output folder, which every worker sees: what is not a folder of the user's."""


def start_folder(config: TrainConfig) -> Path | None:
    """The model folder that ``init_from`` means.

    A checkpoint is made a model, and a registered model is copied, below the output folder: the
    cache of downloaded models is the driver's own, and workers may live on other nodes. A run that
    goes on keeps what it began with, also when an alias has moved since.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it is no model, or damaged; the message names it.
    """
    reference = config.init_from
    if reference is None:
        return None
    kept = config.output / START_FOLDER
    if reference.startswith(REGISTERED):
        return kept if kept.is_dir() else _copy(resolve_model(reference, config.tracking.uri), kept)
    folder = Path(reference)
    if not folder.is_dir():
        raise FileNotFoundError(f"init_from: {folder} does not exist")
    if (folder / "state.json").is_file():
        state = CheckpointStore.read(folder)
        if not kept.is_dir():
            export_checkpoint(folder, config.model, state.start_folder, kept)
        return kept
    if (folder / "MANIFEST.json").exists():
        verify_manifest(folder)
    return folder  # parts without a manifest, as `nurie models init` leaves them, are fine


def _copy(model: Path, target: Path) -> Path:
    partial = target.with_name(f".partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(model, partial)
    return publish_folder(partial, target)
