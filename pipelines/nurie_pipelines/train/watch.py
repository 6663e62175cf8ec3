"""What people look at while a stage trains: validation curves and sample grids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import torch

from nurie.training.ema import Ema
from nurie.training.stages import TrainingStage
from nurie_pipelines.train.engines import Engine
from nurie_pipelines.train.engines.gather import gather_average
from nurie_pipelines.train.job import StageJob
from nurie_pipelines.train.metrics import StepLog
from nurie_pipelines.train.samples import SampleGrid
from nurie_pipelines.train.validation import FixedValidation


class Watch:
    """Validates and draws at intervals, on worker 0, with the averaged weights where they are kept.

    Nothing of it reaches the training: weights, mode and random numbers are as before.

    Args:
        job: The stage.
        rank: Number of the worker.
        device: Where it computes.
        log: Where the values go.
    """

    def __init__(self, job: StageJob, rank: int, device: torch.device, log: StepLog) -> None:
        self.job = job
        self._rank = rank
        self._device = device
        self._log = log

    @cached_property
    def _validation(self) -> FixedValidation:
        return FixedValidation(self.job, self._device)

    def look(self, engine: Engine, ema: Ema | None, step: int) -> None:
        """Does what is due after ``step`` steps; all workers call it."""
        config, last = self.job.config, step == self.job.settings.steps
        validates = last or step % config.tracking.validate_every == 0
        validates = validates and config.tracking.validation_samples > 0
        draws = last or (step > 0 and step % config.sample_every == 0)
        if not validates and not draws:
            return
        with self._log.pause():
            average = {} if ema is None else gather_average(engine, ema.shadow)
            self._look(engine, average, step, validates=validates, draws=draws)

    def _look(
        self,
        engine: Engine,
        average: Mapping[str, torch.Tensor],
        step: int,
        *,
        validates: bool,
        draws: bool,
    ) -> None:
        with engine.full_model():
            if self._rank > 0:
                return
            with averaged(engine.stage, average):
                if validates:
                    values = self._validation.measure(engine.stage)
                    self._log.write(step, values)
                    self.job.checkpoints().note_loss(step, values["val/loss"])
                if draws:
                    SampleGrid(self.job).draw(engine.stage.model, step)


@contextmanager
def averaged(stage: TrainingStage, average: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within this context the trained parameters are their averages, if there are any.

    The parameters wait in main memory and are written back bit for bit.
    """
    parameters = {name: p for name, p in stage.trained_parameters() if name in average}
    kept = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
    _overwrite(parameters, average)
    try:
        yield
    finally:
        _overwrite(parameters, kept)


@torch.no_grad()
def _overwrite(
    parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, torch.Tensor]
) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
