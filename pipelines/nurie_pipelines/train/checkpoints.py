"""Checkpoints of a running stage: whole or not there, newest first, a few kept.

A checkpoint folder ``step-000200`` holds every worker's shard of weights, average and optimizer
state, and ``state.json``. It is written under another name and renamed when its digest manifest is
complete, so a killed run leaves nothing that looks like a checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nurie.checkpoints.manifest import (
    CheckpointError,
    publish_folder,
    verify_manifest,
    write_atomically,
    write_manifest,
)
from nurie.checkpoints.sharded import AVERAGE, Fragment, ShardedState, open_shards, write_shard
from nurie.training.ema import Ema
from nurie_pipelines.train.engines import Engine

_PARTIAL = ".partial-"
_SHARDS = "state"
LOSSES_FILE = "losses.json"
"""Validation losses of a stage's checkpoints by name, beside them."""


@dataclass(frozen=True)
class StageState:
    """Where a stage stands.

    Args:
        stage: Kind of the stage.
        step: Steps that are done.
        world_size: Workers that wrote the shards.
        start_from: Model folder that the stage started from (None: fresh weights).
        counters: See ``Engine.counters``.
        guard: See ``LossGuard.state``.
    """

    stage: str
    step: int
    world_size: int
    start_from: str | None = None
    counters: dict[str, float] = field(default_factory=dict)
    guard: dict[str, Any] = field(default_factory=dict)

    @property
    def start_folder(self) -> Path | None:
        """``start_from`` as a path."""
        return None if self.start_from is None else Path(self.start_from)


class CheckpointStore:
    """The checkpoints of one stage; every rank holds one on the same shared folder.

    Args:
        folder: Folder of the checkpoints.
        keep: Newest checkpoints that stay.
        keep_best: Checkpoints with the lowest noted loss, which stay as well.
        beside: Files that go into every checkpoint: what the run was made from.
        say: Where remarks for people go.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        beside: Sequence[Path] = (),
        say: Callable[[str], None] = print,
        keep_best: int = 0,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.keep_best = keep_best
        self.beside = beside
        self.say = say

    def save(self, state: StageState, engine: Engine, ema: Ema | None) -> bool:
        """Writes a checkpoint; all ranks call it.

        Returns:
            False if it could not be written, for want of space say; those there are stay as they
            were, and nothing half-written is left.
        """
        name = _name(state.step)
        partial, final = self.folder / f"{_PARTIAL}{name}", self.folder / name
        fragments = list(_all_fragments(engine, ema))
        needed = _sum_over_ranks(4 * sum(each.values.numel() for each in fragments))
        state = replace(state, counters=engine.counters())
        with self._step_of_saving() as failures:
            if _is_writer():
                self._sweep()
                partial.mkdir(parents=True)
                _check_space(self.folder, needed)
        if not failures:
            with self._step_of_saving() as failures:
                write_shard(partial / _SHARDS / f"rank-{_rank():05d}.safetensors", fragments)
        if not failures:
            with self._step_of_saving() as failures:
                if _is_writer():
                    text = json.dumps(asdict(state), indent=1)
                    (partial / "state.json").write_text(text)
                    for file in self.beside:
                        shutil.copyfile(file, partial / file.name)
                    write_manifest(partial)
                    publish_folder(partial, final, replace=True)
                    self._retain()
        if failures and _is_writer():
            self._sweep()
            self.say(f"{final} could not be written: {failures[0]}")
        return not failures

    def newest(self) -> tuple[Path, StageState] | None:
        """The newest whole checkpoint; damaged ones are named and passed over."""
        for folder in reversed(self._folders()):
            try:
                return folder, self.read(folder)
            except CheckpointError as error:
                self.say(f"passing over a damaged checkpoint: {error}")
        return None

    @staticmethod
    def read(folder: Path) -> StageState:
        """Where a stage stood when it wrote a checkpoint.

        Raises:
            CheckpointError: If a file of the checkpoint is missing or damaged.
        """
        verify_manifest(folder)
        path = folder / "state.json"
        try:
            return StageState(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: this is no readable state ({error})") from error

    def restore(self, engine: Engine, ema: Ema | None) -> StageState | None:
        """Loads the newest whole checkpoint; all ranks call it, as many as there may be now.

        Returns:
            Where the stage stands (None: at its beginning).
        """
        found = self.newest()
        if found is None:
            return None
        folder, state = found
        with open_checkpoint(folder) as shards:
            engine.load(shards, state.counters)
            for fragment in engine.fragments() if ema is not None else ():
                assert ema is not None
                length = fragment.values.numel()
                if length:
                    part = shards.part(fragment.name, AVERAGE, fragment.start, length)
                    ema.shadow[fragment.name].copy_(part)
        return state

    def note_loss(self, step: int, loss: float) -> None:
        """Notes the validation loss of a step for ``keep_best``; one rank calls it."""
        losses = {**self._losses(), _name(step): loss}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / LOSSES_FILE, json.dumps(losses, indent=1).encode())

    def _retain(self) -> None:
        """Deletes checkpoints that are neither among the newest nor among the best."""
        *older, _ = folders = self._folders()
        losses = self._losses()
        measured = [each for each in older if math.isfinite(losses.get(each.name, math.inf))]
        best = sorted(measured, key=lambda each: losses[each.name])[: self.keep_best]
        for folder in folders[: -self.keep]:
            if folder not in best:
                shutil.rmtree(folder)

    def _losses(self) -> dict[str, float]:
        path = self.folder / LOSSES_FILE
        return json.loads(path.read_text()) if path.exists() else {}

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _sweep(self) -> None:
        """Removes what a killed run has left half-written."""
        for partial in self.folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(partial)

    @contextmanager
    def _step_of_saving(self) -> Iterator[list[str]]:
        """What goes wrong in the body on any rank is known to all of them after it."""
        failures: list[str] = []
        try:
            yield failures
        except OSError as error:
            failures.append(f"{error}")
        if _sum_over_ranks(len(failures)) and not failures:
            failures.append("another worker failed to write its part")


@contextmanager
def open_checkpoint(folder: Path) -> Iterator[ShardedState]:
    """The tensors of a checkpoint folder."""
    with open_shards(folder / _SHARDS) as shards:
        yield shards


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _all_fragments(engine: Engine, ema: Ema | None) -> Iterator[Fragment]:
    for fragment in engine.fragments():
        yield fragment
        if ema is not None:
            yield replace(fragment, state=AVERAGE, values=ema.shadow[fragment.name])
    yield from engine.optimizer_fragments()


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{folder}: {free / 2**30:.1f} GiB are free, {needed / 2**30:.1f} are needed")


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _is_writer() -> bool:
    return _rank() == 0


def _sum_over_ranks(value: int) -> int:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(value, device=device)
    dist.all_reduce(total)
    return int(total)
