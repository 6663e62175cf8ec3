"""One optimizer step over all micro-batches and workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from nurie.data.schedule import rank_rows
from nurie.training.batch import TrainBatch
from nurie.training.draws import RowGenerators, row_generators
from nurie.training.stages import LossOutput
from nurie_pipelines.train.engines import Engine
from nurie_pipelines.train.guard import LossGuard
from nurie_pipelines.train.job import StageJob


@dataclass(frozen=True)
class Workers:
    """This worker among all.

    Args:
        rank: Its number.
        world: How many there are.
    """

    rank: int
    world: int


@dataclass(frozen=True)
class MicroBatch:
    """A worker's samples of one micro-batch.

    Args:
        batch: Tensors.
        sample_ids: Which samples they are.
    """

    batch: TrainBatch
    sample_ids: list[str]


@dataclass(frozen=True)
class StepResult:
    """What a step was.

    Args:
        loss: Its loss, mean over micro-batches and workers.
        parts: Parts of it by name, likewise.
        taken: Whether the weights have changed.
        accepted: Whether the guard let it pass.
        stop: Whether any worker has been asked to stop.
        sample_ids: This worker's samples.
    """

    loss: float
    parts: dict[str, float]
    taken: bool
    accepted: bool
    stop: bool
    sample_ids: list[str]


class StepTaker:
    """Takes optimizer steps; before the last backward pass of each all workers agree.

    Args:
        engine: The engine.
        batches: This worker's micro-batches.
        job: The stage.
        guard: Decides whether a step's loss is sane.
        workers: This worker among all.
    """

    def __init__(
        self,
        engine: Engine,
        batches: Iterator[MicroBatch],
        job: StageJob,
        guard: LossGuard,
        workers: Workers,
    ) -> None:
        self.engine, self.batches, self.job = engine, batches, job
        self.guard, self.workers = guard, workers
        settings = job.settings
        self._size = settings.batch_size // settings.gradient_accumulation_steps
        self._rows = rank_rows(self._size, workers.rank, workers.world)
        # Engines average over workers; a worker with more samples weighs more.
        self._weight = len(self._rows) * workers.world / self._size

    def take(self, step: int, stop: bool) -> StepResult:
        """Trains on a step's micro-batches.

        Args:
            step: Number of the step, from 0.
            stop: Whether this worker has been asked to stop.
        """
        count = self.job.settings.gradient_accumulation_steps
        outs: list[LossOutput] = []
        ids: list[str] = []
        accepted = taken = True
        loss, parts, stops = 0.0, {}, False
        for index in range(count):
            micro = next(self.batches)
            ids += micro.sample_ids
            out = self.engine.forward(micro.batch, step, self._generators(step, index))
            outs.append(out)
            if index == count - 1:
                loss, parts, stops = _agree(outs, stop, self.workers.world, self._weight)
                accepted = self.guard.accepts(loss)
            # Gradients that are not finite make every engine throw the whole step away.
            factor = self._weight if accepted else float("inf")
            self.engine.backward(out.total if factor == 1 else out.total * factor)
            taken = self.engine.update()
        return StepResult(loss, parts, taken, accepted, stops, ids)

    def _generators(self, step: int, index: int) -> RowGenerators:
        rows = range(index * self._size + self._rows.start, index * self._size + self._rows.stop)
        return row_generators(self.job.config.seed, self.job.kind, step, rows)


def _agree(
    outs: list[LossOutput], stop: bool, world: int, weight: float
) -> tuple[float, dict[str, float], bool]:
    """Means over micro-batches and workers, and whether any worker is to stop."""
    names = list(outs[0].parts)
    device = outs[0].total.device
    values = [[out.total, *(out.parts[name].to(device) for name in names)] for out in outs]
    rows = [torch.stack([each.detach().float() for each in row]) for row in values]
    mean = torch.stack(rows).mean(0) * (weight / world)
    vote = torch.cat([mean, torch.tensor([float(stop)], device=device)])
    if world > 1:
        dist.all_reduce(vote)
    loss, *means, stops = vote.tolist()
    return loss, dict(zip(names, means, strict=True)), stops > 0
