"""What the training loop costs around the step: judging, averaging, metrics, checkpoints."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import yaml

from benchmarks.measure import Row, compare, seconds_of
from benchmarks.workers import on_workers
from nurie.config.loader import load_config
from nurie.config.train import EngineConfig, TrainConfig
from nurie.models.colorizer import ColorizationModel
from nurie.planning.trace import example_batch
from nurie.tracking.origin import CONFIG_FILE, write_origin
from nurie.training.draws import row_generators
from nurie.training.ema import Ema
from nurie.training.stages import build_stage
from nurie_pipelines.train.engines import build_engine
from nurie_pipelines.train.job import StageJob
from nurie_pipelines.train.metrics import StepLog
from nurie_pipelines.train.standing import StageProgress
from nurie_pipelines.train.step import MicroBatch, StepTaker, Workers

STEPS = 6
"""Steps of one measurement."""
CHECKPOINT_EVERY = 50


class Loop:
    """A backbone stage of ``nano`` in this worker of a group, behind the ramp of its Gram loss.

    Args:
        folder: Where metrics and checkpoints go.
    """

    def __init__(self, folder: Path) -> None:
        workers = Workers(dist.get_rank(), dist.get_world_size())
        config = load_config("configs/train/nano.yaml")
        assert isinstance(config, TrainConfig)
        stage = config.stages[0].model_copy(update={"steps": 10_000})
        engine = EngineConfig(num_workers=workers.world)
        changes = {"engine": engine, "stages": (stage,), "checkpoint_every": stage.steps}
        config = config.model_copy(update={**changes, "output": folder})
        folder.mkdir(exist_ok=True)
        (folder / CONFIG_FILE).write_text(yaml.safe_dump(config.model_dump(mode="json")))
        write_origin(folder)
        self.job = StageJob(config, 0, None, folder)
        self.first = stage.steps - 1000
        torch.manual_seed(0)
        model = ColorizationModel(config.model)
        module = build_stage(model, self.job.settings, lambda pixels: pixels)
        self.engine = build_engine(module, engine, workers.world)
        self.batch = example_batch(config.model, stage, stage.batch_size // workers.world)
        self.log = StepLog(self.job, workers, torch.device("cpu"))
        self.progress = StageProgress(self.job, self.engine, workers, self.log)
        micro = MicroBatch(self.batch, ["x"] * self.batch.size)
        batches = self.log.timed(itertools.repeat(micro))
        self.taker = StepTaker(self.engine, batches, self.job, self.progress.guard, workers)

    def run(self) -> None:
        """The steps as a worker takes them."""
        for step in range(self.first, self.first + STEPS):
            self.engine.set_learning_rate(1e-5)
            with self.log.step():
                result = self.taker.take(step, stop=self.job.asked_to_stop())
            self.log.record(step + 1, result, self.engine, 1e-5)
            self.progress.after_step(step + 1, result)

    def save(self) -> None:
        """A checkpoint."""
        if not self.progress.save(self.first):
            raise OSError("the checkpoint could not be written")

    def bare(self) -> Callable[[], None]:
        """The same steps with nothing around them but the average."""
        ema = Ema(self._weights(), self.job.settings.ema_decay)

        def steps() -> None:
            for step in range(self.first, self.first + STEPS):
                rows = row_generators(0, self.job.kind, step, range(self.batch.size))
                self.engine.backward(self.engine.forward(self.batch, step, rows).total)
                self.engine.update()
                ema.update(self._weights(), step)

        return steps

    def _weights(self) -> list[tuple[str, torch.Tensor]]:
        return [(each.name, each.values) for each in self.engine.fragments()]


def run() -> Iterator[Row]:
    """Measure backbone steps of ``nano``, batch 16, both branches."""
    with tempfile.TemporaryDirectory(prefix="nurie-bench-") as name:
        folder = Path(name)
        whole, bare, pause = on_workers(_overhead, 1, folder / "loop")
        yield Row("backbone step of nano in the training loop | bare", whole, bare, 0.95, "")
        steps = CHECKPOINT_EVERY * whole / STEPS
        title = f"{CHECKPOINT_EVERY} steps and a checkpoint ({pause:.2f} CPU s) | without"
        yield Row(title, steps + pause, steps, 0.95, "")
        two, one = (on_workers(_wall_seconds, n, folder / f"{n}") for n in (2, 1))
        yield Row("two workers, half the batch each | one (wall time)", two, one, 1.5, "")


def _overhead(folder: Path) -> tuple[float, float, float]:
    loop = Loop(folder)
    seconds = compare(loop.run, loop.bare(), 3)
    return *seconds, seconds_of(loop.save, 3, "cpu")


def _wall_seconds(folder: Path) -> float:
    os.sched_setaffinity(0, {dist.get_rank()})
    loop = Loop(folder)
    loop.run()
    start = time.monotonic()
    loop.run()
    return time.monotonic() - start
