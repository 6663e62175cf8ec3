"""What the training loop costs around the step: judging, averaging, metrics, checkpoints."""

from __future__ import annotations

import itertools
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from benchmarks.measure import Row, compare, seconds_of
from nurie.config.loader import load_config
from nurie.config.model import ModelConfig
from nurie.config.train import EngineConfig, TrainConfig
from nurie.models.colorizer import ColorizationModel
from nurie.training.batch import TrainBatch, make_batch
from nurie.training.draws import row_generators
from nurie.training.ema import Ema
from nurie.training.stages import build_stage
from nurie_pipelines.train.engines import Engine, build_engine
from nurie_pipelines.train.job import StageJob
from nurie_pipelines.train.metrics import StepLog
from nurie_pipelines.train.standing import StageProgress
from nurie_pipelines.train.step import MicroBatch, StepTaker, Workers

STEPS = 6
"""Steps of one measurement."""


def run() -> Iterator[Row]:
    """Measure a backbone step of ``nano``, batch 16, both branches."""
    with tempfile.TemporaryDirectory(prefix="nurie-bench-") as folder:
        yield from _overhead(Path(folder))
        yield _scaling(Path(folder))


def _job(folder: Path, name: str, num_workers: int) -> StageJob:
    config = load_config("configs/train/nano.yaml")
    assert isinstance(config, TrainConfig)
    stage = config.stages[0].model_copy(update={"steps": 10_000})
    config = config.model_copy(
        update={
            "engine": EngineConfig(kind="deepspeed", num_workers=num_workers),
            "stages": (stage,),
            "checkpoint_every": 10_000,
        }
    )
    job = StageJob(config, 0, None, folder / name)
    job.folder.mkdir(parents=True, exist_ok=True)
    return job


def _engine(job: StageJob, world: int) -> Engine:
    torch.manual_seed(0)
    model = ColorizationModel(job.config.model)
    stage = build_stage(model, job.settings, lambda pixels: pixels)
    return build_engine(stage, job.config.engine, world)


def random_batch(config: ModelConfig, size: int) -> TrainBatch:
    """A batch of noise in the shapes that the feed gives."""
    reference, side = config.reference, config.image_size
    pixels = torch.randint(0, 256, (size, side, side), dtype=torch.uint8)
    latent = side // 2 ** (len(config.vae.block_out_channels) - 1)
    patches = (reference.image_size // reference.patch_size) ** 2 + 1
    tokens = {
        "image_tokens": torch.randn(size, patches, reference.image_token_dim),
        "tagger_tokens": torch.randn(size, reference.num_tokens, reference.tagger_token_dim),
    }
    columns = {
        "latents": torch.randn(size, config.vae.latent_channels, latent, latent),
        "sketch": pixels,
        "foreground_mask": pixels,
        "original_area": torch.full((size,), float(side * side)),
        "aesthetic_score": torch.full((size,), 7.0),
        **tokens,
        **{f"mismatched_{name}": values.flip(0) for name, values in tokens.items()},
    }
    return make_batch(columns, config.unet.added_embedding_dim)


def _steps(job: StageJob, world: int, rank: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The loop's steps, and the same steps bare."""
    engine = _engine(job, world)
    batch = random_batch(job.config.model, job.settings.batch_size // world)
    first = job.settings.steps - 1000  # behind the ramp: both branches
    workers = Workers(rank, world)
    log = StepLog(job, workers, torch.device("cpu"))
    progress = StageProgress(job, engine, workers, log)
    batches = log.timed(itertools.repeat(MicroBatch(batch, ["x"] * batch.size)))
    taker = StepTaker(engine, batches, job, progress.guard, workers)
    ema = Ema(((f.name, f.values) for f in engine.fragments()), job.settings.ema_decay)

    def whole() -> None:
        for step in range(first, first + STEPS):
            engine.set_learning_rate(1e-5)
            with log.step():
                result = taker.take(step, stop=job.asked_to_stop())
            log.record(step + 1, result, engine, 1e-5)
            progress.after_step(step + 1, result)

    def bare() -> None:
        for step in range(first, first + STEPS):
            rows = row_generators(0, job.kind, step, range(batch.size))
            engine.backward(engine.forward(batch, step, rows).total)
            engine.update()
            ema.update(((f.name, f.values) for f in engine.fragments()), step)

    return whole, bare


def _overhead(folder: Path) -> Iterator[Row]:
    def measure(rank: int, world: int) -> tuple[float, ...]:
        job = _job(folder, "loop", 1)
        whole, bare = _steps(job, world, rank)
        seconds = compare(whole, bare, 3)
        log = StepLog(job, Workers(rank, world), torch.device("cpu"))
        progress = StageProgress(job, _engine(job, world), Workers(rank, world), log)
        pause = seconds_of(lambda: progress.save(1), 3, "cpu")
        return *seconds, pause

    whole, bare, pause = _on_workers(measure, 1, folder)
    yield Row("backbone step of nano in the training loop | bare", whole, bare, 0.95, "same steps")
    # What a checkpoint every 50 steps adds to them.
    with_pause = 50 * whole / STEPS + pause
    name = f"50 steps with a checkpoint ({pause:.2f} CPU s) | without"
    yield Row(name, with_pause, 50 * whole / STEPS, 0.95, "")


def _scaling(folder: Path) -> Row:
    """The same global batch on two workers, one core each: wall time."""

    def measure(rank: int, world: int) -> float:
        os.sched_setaffinity(0, {rank})
        whole, _ = _steps(_job(folder, f"scaling-{world}", world), world, rank)
        whole()
        start = time.monotonic()
        whole()
        return time.monotonic() - start

    two, one = (_on_workers(measure, world, folder) for world in (2, 1))
    return Row("two workers, half the batch each | one worker (wall time)", two, one, 1.5, "")


def _on_workers(body: Callable[[int, int], Any], world: int, folder: Path) -> Any:
    """Runs a function in forked processes of a gloo group; rank 0's result."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def worker(rank: int) -> None:
        os.environ |= {
            "DS_ACCELERATOR": "cpu",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(rank),
        }
        torch.set_num_threads(1)
        dist.init_process_group("gloo", rank=rank, world_size=world)
        result = body(rank, world)
        if rank == 0:
            torch.save(result, folder / "result.pt")
        dist.barrier()
        dist.destroy_process_group()

    context = torch.multiprocessing.get_context("fork")
    processes = [context.Process(target=worker, args=(rank,)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a worker ended with {process.exitcode}")
    return torch.load(folder / "result.pt")
