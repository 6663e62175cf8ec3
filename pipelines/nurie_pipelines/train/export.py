"""From checkpoints to model folders, one tensor at a time.

A stage's checkpoint holds only what the stage has trained. A model folder has that, and everything
else from the folder that the stage started from.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch

from nurie.checkpoints.manifest import CheckpointError, publish_folder, write_manifest
from nurie.checkpoints.sharded import AVERAGE, WEIGHT, ShardedState
from nurie.checkpoints.stream import Weights, open_weights
from nurie.checkpoints.transfer import empty_parts, write_part
from nurie.config.loader import load_config
from nurie.config.model import ModelConfig
from nurie.config.train import TrainConfig
from nurie.inference.folder import complete_folder
from nurie.models.colorizer import LORA_FOLDER, LORA_NAME
from nurie.models.folders import plain_name, write_lora
from nurie.tracking.origin import CONFIG_FILE
from nurie.training.stages.finetune import FINETUNE_LORA
from nurie_pipelines.train.checkpoints import CheckpointStore, open_checkpoint

_LORA = ".lora_"
_BACKGROUND_LORA = f".{LORA_NAME}."


def export_checkpoint(
    checkpoint: Path, config: ModelConfig, start: Path | None, folder: Path
) -> None:
    """Write the model that a stage has reached: averaged weights where an average is kept.

    Args:
        checkpoint: The stage's checkpoint, ``step-000200``.
        config: The preset.
        start: Model folder that the stage started from (None: fresh weights, all of them trained).
        folder: Target; it appears when it is whole, in fp32.

    Raises:
        CheckpointError: If a tensor is neither in the checkpoint nor in the start folder.
    """
    partial = _fresh(folder)
    with open_checkpoint(checkpoint) as shards:
        state = AVERAGE if shards.names(AVERAGE) else WEIGHT
        trained = {plain_name(name): name for name in shards.names(state)}
        for name, part in empty_parts(config).items():
            own = {key for key in trained if _belongs(key, name)}
            given = start / name if start is not None and (start / name).is_dir() else None
            if not own:
                if given is not None:
                    shutil.copytree(given, partial / name)
                continue
            with ExitStack() as stack:
                weights = None if given is None else stack.enter_context(open_weights(given))
                read = _Reader(f"{name}.", trained, shards, state, weights)
                write_part(part, partial / name, read, torch.float32)
        lora = {key: each for key, each in trained.items() if _BACKGROUND_LORA in key}
        if lora:
            _write_lora(shards, state, lora, config, partial)
        elif start is not None and (start / LORA_FOLDER).is_dir():
            shutil.copytree(start / LORA_FOLDER, partial / LORA_FOLDER)
    write_manifest(partial)
    publish_folder(partial, folder, replace=True)


def assemble_model(weights: Path, config: TrainConfig, folder: Path) -> None:
    """Join trained weights and frozen components to a model folder for people to use.

    Args:
        weights: The trained parts.
        config: The run: preset and components.
        folder: Target; it appears when it is whole, in fp16.
    """
    partial = _fresh(folder)
    copy_in_half_precision(weights, config.model, partial)
    complete_folder(partial, config.components, config.model)
    publish_folder(partial, folder, replace=True)


def model_of_checkpoint(checkpoint: Path, folder: Path) -> None:
    """Make a model folder of any checkpoint, by the configuration that lies in it.

    Raises:
        CheckpointError: If a file of the checkpoint is missing or damaged.
    """
    state = CheckpointStore.read(checkpoint)
    config = load_config(checkpoint / CONFIG_FILE)
    assert isinstance(config, TrainConfig)
    weights = folder.with_name(f".weights-{folder.name}")
    try:
        export_checkpoint(checkpoint, config.model, state.start_folder, weights)
        assemble_model(weights, config, folder)
    finally:
        shutil.rmtree(weights, ignore_errors=True)


def copy_in_half_precision(weights: Path, config: ModelConfig, folder: Path) -> None:
    """Write the trained parts of a model folder as fp16, for people to use.

    Args:
        weights: The folder.
        config: The preset.
        folder: Target, made anew.
    """
    for name, part in empty_parts(config).items():
        if (weights / name).is_dir():
            with open_weights(weights / name) as given:
                read = _Reader(f"{name}.", {}, None, WEIGHT, given)
                write_part(part, folder / name, read, torch.float16)
    if (weights / LORA_FOLDER).is_dir():
        with open_weights(weights / LORA_FOLDER) as given:
            tensors = {name: given.tensor(name) for name in given.names()}
        write_lora(tensors, config.lora_rank, folder / LORA_FOLDER, torch.float16)


def _belongs(key: str, part: str) -> bool:
    """Whether a trained tensor goes into a part's own file; fine-tuning changes the U-Net's."""
    inside = key.startswith(f"{part}.")
    return inside and (_LORA not in key or f".{FINETUNE_LORA}." in key)


class _Reader:
    """A part's tensors: trained ones from the checkpoint, others from the start folder."""

    def __init__(
        self,
        prefix: str,
        trained: dict[str, str],
        shards: ShardedState | None,
        state: str,
        weights: Weights | None,
    ) -> None:
        self._prefix, self._trained = prefix, trained
        self._shards, self._state, self._weights = shards, state, weights

    def __call__(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        key = self._trained.get(f"{self._prefix}{name}")
        if key is not None and self._shards is not None:
            return self._shards.whole(key, self._state)
        if self._weights is None:
            raise CheckpointError(f"{self._prefix}{name} is in no checkpoint and no start folder")
        return self._weights.tensor(name) + self._change(name.removesuffix(".weight"))

    def _change(self, layer: str) -> torch.Tensor | int:
        """What fine-tuning adds to a layer's matrix."""
        lora = [f"{self._prefix}{layer}.lora_{each}.{FINETUNE_LORA}.weight" for each in "AB"]
        if self._shards is None or lora[0] not in self._trained:
            return 0
        down, up = (self._shards.whole(self._trained[key], self._state) for key in lora)
        return up @ down


def _write_lora(
    shards: ShardedState, state: str, names: dict[str, str], config: ModelConfig, folder: Path
) -> None:
    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for key, name in sorted(names.items()):
            plain = key.removeprefix("unet.").replace(f".{LORA_NAME}", "")
            yield plain, shards.whole(name, state)

    write_lora(dict(tensors()), config.lora_rank, folder / LORA_FOLDER)


def _fresh(folder: Path) -> Path:
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial
