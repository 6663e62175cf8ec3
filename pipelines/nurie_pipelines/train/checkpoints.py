"""Checkpoints of a running stage: whole or not there, newest first, a few kept.

A checkpoint folder ``step-000200`` holds every rank's engine state, the trained weights and their
average as safetensors, and ``state.json``. It is written under another name and renamed when its
digest manifest is complete, so a killed run leaves nothing that looks like a checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from nurie.checkpoints.manifest import (
    CheckpointError,
    publish_folder,
    verify_manifest,
    write_manifest,
)
from nurie.training.ema import Ema
from nurie_pipelines.train.engine import Engine

_PARTIAL = ".partial-"


@dataclass(frozen=True)
class StageState:
    """Where a stage stands.

    Args:
        stage: Kind of the stage.
        step: Steps that are done.
        world_size: Workers that wrote the engine's state.
    """

    stage: str
    step: int
    world_size: int


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def _is_writer() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


class CheckpointStore:
    """The checkpoints of one stage; every rank holds one on the same shared folder.

    Args:
        folder: Folder of the checkpoints.
        keep: Newest checkpoints that stay.
        beside: Files that go into every checkpoint: what the run was made from.
        say: Where remarks for people go.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        beside: Sequence[Path] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.beside = beside
        self.say = say

    def save(self, state: StageState, engine: Engine, ema: Ema | None) -> None:
        """Writes a checkpoint; all ranks call it."""
        name = f"step-{state.step:06d}"
        partial, final = self.folder / f"{_PARTIAL}{name}", self.folder / name
        if _is_writer():
            self._sweep()
            partial.mkdir(parents=True)
        _barrier()
        engine.save(partial / "engine")
        with engine.full_parameters():
            if _is_writer():
                _write_weights(partial, engine, ema)
        _barrier()
        if _is_writer():
            (partial / "state.json").write_text(json.dumps(asdict(state), indent=1))
            for file in self.beside:
                shutil.copyfile(file, partial / file.name)
            write_manifest(partial)
            publish_folder(partial, final, replace=True)
            for old in self._folders()[: -self.keep]:
                shutil.rmtree(old)
        _barrier()

    def newest(self) -> tuple[Path, StageState] | None:
        """The newest whole checkpoint; damaged ones are named and passed over."""
        for folder in reversed(self._folders()):
            try:
                verify_manifest(folder, allow_pickles=True)
            except CheckpointError as error:
                self.say(f"passing over a damaged checkpoint: {error}")
                continue
            state = StageState(**json.loads((folder / "state.json").read_text()))
            return folder, state
        return None

    def restore(self, engine: Engine, ema: Ema | None, world_size: int) -> int:
        """Loads the newest whole checkpoint; all ranks call it.

        Returns:
            Steps that are done, 0 without a checkpoint.

        Raises:
            ValueError: If it was written by another number of workers.
        """
        found = self.newest()
        if found is None:
            return 0
        folder, state = found
        if state.world_size != world_size:
            raise ValueError(
                f"{folder}: was written by {state.world_size} workers, this run has {world_size}; "
                f"set engine.num_workers to {state.world_size} or start a run of another name"
            )
        engine.load(folder / "engine")
        if ema is not None:
            ema.shadow.update(load_file(folder / "ema.safetensors"))
        self.say(f"continuing stage {state.stage} after step {state.step}")
        return state.step

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _sweep(self) -> None:
        """Removes what a killed run has left half-written."""
        for partial in self.folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(partial)


def _write_weights(folder: Path, engine: Engine, ema: Ema | None) -> None:
    weights = {
        name: parameter.detach().float().cpu().contiguous()
        for name, parameter in engine.stage.trained_parameters()
    }
    save_file(weights, folder / "trained.safetensors")
    if ema is not None:
        save_file({n: t.contiguous() for n, t in ema.shadow.items()}, folder / "ema.safetensors")


def load_trained(folder: Path, parameters: dict[str, torch.nn.Parameter], *, average: bool) -> None:
    """Copies a checkpoint's trained weights (or their average) into parameters of the same names.

    Raises:
        CheckpointError: If the names differ.
    """
    name = "ema.safetensors" if average else "trained.safetensors"
    weights = load_file(folder / name)
    if weights.keys() != parameters.keys():
        different = sorted(weights.keys() ^ parameters.keys())
        raise CheckpointError(f"{folder / name}: other tensors than the stage's: {different[:3]}")
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(weights[key])
