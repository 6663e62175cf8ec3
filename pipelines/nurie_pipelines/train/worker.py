"""What every training worker does: one stage, from the newest checkpoint to the last step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import ray.train
import torch
from diffusers import AutoencoderKL
from ray.train import torch as ray_torch

from nurie.config.train import StageBase
from nurie.models.autoencoder import encode_latents
from nurie.models.colorizer import ColorizationModel
from nurie.training.batch import TrainBatch, make_batch
from nurie.training.draws import step_generator
from nurie.training.ema import Ema
from nurie.training.learning_rate import learning_rate
from nurie.training.stages import LossOutput, TrainingStage, build_stage
from nurie_pipelines.data.ingest import training_dataset
from nurie_pipelines.train.checkpoints import StageState
from nurie_pipelines.train.engine import Engine, build_engine
from nurie_pipelines.train.job import StageJob
from nurie_pipelines.train.metrics import StepLog
from nurie_pipelines.train.watch import Watch


def make_stage(job: StageJob, device: torch.device) -> TrainingStage:
    """The stage's module with its start weights, the same on every rank."""
    torch.manual_seed(job.config.seed)
    model = ColorizationModel(job.config.model)
    if job.start_from is not None:
        model.load(job.start_from)
    vae = AutoencoderKL.from_pretrained(job.config.components / "vae", torch_dtype=torch.float32)
    vae = vae.to(device).requires_grad_(False)
    stage = build_stage(model, job.settings, lambda pixels: encode_latents(vae, pixels))
    return stage.to(device)


def run_stage(job: StageJob) -> None:
    """Train one stage in this worker, together with the others of its group."""
    config, settings = job.config, job.settings
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if not config.engine.use_gpu:
        torch.set_num_threads(1)
    stage = make_stage(job, ray_torch.get_device())
    engine = build_engine(stage, config.engine)
    ema = None
    if settings.ema_decay:
        with engine.full_parameters():
            ema = Ema(stage.trained_parameters(), settings.ema_decay)
    store = job.checkpoints()
    done = store.restore(engine, ema, world)
    device = ray_torch.get_device()
    log = StepLog(job, rank, device)
    watch = Watch(job, rank, device, log)
    if done == 0:
        watch.look(engine, ema, 0)
    batches = log.timed(_batches(job, done, rank, world))
    for step in range(done, settings.steps):
        rate = learning_rate(settings.optimizer, step, settings.steps)
        engine.set_learning_rate(rate)
        with log.step():
            out = _step(
                engine, batches, settings, step_generator(config.seed, job.kind, step, rank), step
            )
        if ema is not None:
            with engine.full_parameters():
                ema.update(stage.trained_parameters(), step)
        finished = step + 1
        log.record(finished, out, engine, rate)
        if finished == settings.steps or finished % config.checkpoint_every == 0:
            with log.checkpoint(finished):
                store.save(StageState(job.kind, finished, world), engine, ema)
        watch.look(engine, ema, finished)
    ray.train.report({"step": settings.steps})


def _batches(job: StageJob, done: int, rank: int, world: int) -> Iterator[TrainBatch]:
    """This rank's micro-batches, from the first that is not trained on yet."""
    config, settings = job.config, job.settings
    micro_batches = settings.gradient_accumulation_steps
    global_batch = settings.batch_size // micro_batches
    if done == settings.steps:
        return
    dataset = training_dataset(
        config.data,
        config.model,
        config.components,
        settings,
        global_batch,
        (settings.steps - done) * micro_batches,
        done * micro_batches,
        config.seed,
        rank=rank,
        num_workers=world,
    )
    # A split of one moves Ray Data's scheduling loop into a process of its own; inside the worker
    # it would fight with the training thread for the interpreter lock (measured: 4x slower steps).
    (rows,) = dataset.streaming_split(1, equal=False)
    device = ray_torch.get_device()
    for columns in rows.iter_batches(
        batch_size=global_batch // world,
        prefetch_batches=config.data.prefetch_batches,
        batch_format="numpy",
    ):
        yield make_batch(as_tensors(columns, device), config.model.unet.added_embedding_dim)


def as_tensors(columns: dict[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """The columns of a batch that hold numbers.

    Where shapes change from batch to batch, Ray Data gives a column as an array of arrays.
    """
    stacked = {
        name: np.stack(list(values)) if isinstance(values[0], np.ndarray) else values
        for name, values in columns.items()
    }
    return {
        name: torch.as_tensor(values).to(device)
        for name, values in stacked.items()
        if values.dtype.kind in "fiu"
    }


def _step(
    engine: Engine,
    batches: Iterator[TrainBatch],
    settings: StageBase,
    generator: torch.Generator,
    step: int,
) -> LossOutput:
    """One optimizer step; returns the last micro-batch's losses."""
    for _ in range(settings.gradient_accumulation_steps):
        out = engine.micro_step(next(batches), step, generator)
    return out
