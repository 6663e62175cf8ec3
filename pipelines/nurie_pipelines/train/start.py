"""What a run starts from: a model folder, a checkpoint, or a registered model."""

from __future__ import annotations

from pathlib import Path

from nurie.config.train import TrainConfig
from nurie.tracking.registry import resolve_model
from nurie_pipelines.train.checkpoints import CheckpointStore
from nurie_pipelines.train.export import export_checkpoint


def start_folder(config: TrainConfig) -> Path | None:
    """The model folder that ``init_from`` means; a checkpoint is made one first.

    Raises:
        ValueError: If it is none of these, or damaged; the message names it.
    """
    if config.init_from is None:
        return None
    folder = Path(config.init_from)
    if config.init_from.startswith("models:/") or not (folder / "state.json").is_file():
        if not config.init_from.startswith("models:/") and not folder.is_dir():
            raise FileNotFoundError(f"init_from: {folder} does not exist")
        return _plain(config.init_from, config.tracking.uri)
    state = CheckpointStore.read(folder)
    target = config.output / "start"
    if not target.is_dir():
        start = None if state.start_from is None else Path(state.start_from)
        export_checkpoint(folder, config.model, start, target)
    return target


def _plain(reference: str, tracking_uri: str) -> Path:
    """A model folder; parts without a manifest, as ``nurie models init`` leaves them, are fine."""
    folder = Path(reference)
    if folder.is_dir() and not (folder / "MANIFEST.json").exists():
        return folder
    return resolve_model(reference, tracking_uri)
