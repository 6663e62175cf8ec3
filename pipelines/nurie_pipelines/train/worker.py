"""What every training worker does: one stage, from the newest checkpoint to the last step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import ray.train
import torch
from diffusers import AutoencoderKL
from ray.train import torch as ray_torch

from nurie.data.schedule import rank_rows
from nurie.models.autoencoder import encode_latents
from nurie.models.colorizer import ColorizationModel
from nurie.training.batch import make_batch
from nurie.training.learning_rate import learning_rate
from nurie.training.stages import TrainingStage, build_stage
from nurie_pipelines.data.ingest import training_dataset
from nurie_pipelines.train.engines import build_engine
from nurie_pipelines.train.job import StageJob
from nurie_pipelines.train.metrics import StepLog
from nurie_pipelines.train.standing import StageProgress
from nurie_pipelines.train.step import MicroBatch, StepTaker, Workers
from nurie_pipelines.train.watch import Watch


def make_stage(job: StageJob, device: torch.device) -> TrainingStage:
    """The stage's module with its start weights, the same on every rank."""
    torch.manual_seed(job.config.seed)
    model = ColorizationModel(job.config.model)
    if job.start_from is not None:
        model.load(job.start_from, adapters=[name for name in [job.settings.adapter] if name])
    vae = AutoencoderKL.from_pretrained(job.config.components / "vae", torch_dtype=torch.float32)
    vae = vae.to(device).requires_grad_(False)

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        # The autoencoder of SDXL overflows in half precision.
        with torch.autocast(pixels.device.type, enabled=False):
            return encode_latents(vae, pixels)

    return build_stage(model, job.settings, encode).to(device)


def run_stage(job: StageJob) -> None:
    """Train one stage in this worker, together with the others of its group."""
    config, settings = job.config, job.settings
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    if not config.engine.use_gpu:
        torch.set_num_threads(1)
    device = ray_torch.get_device()
    stage = make_stage(job, device)
    engine = build_engine(stage, config.engine, workers.world)
    log = StepLog(job, workers, device)
    progress = StageProgress(job, engine, workers, log)
    done = progress.restore()
    watch = Watch(job, workers.rank, device, log)
    if done == 0:
        watch.look(engine, progress.ema, 0)
    batches = log.timed(_batches(job, done, workers))
    taker = StepTaker(engine, batches, job, progress.guard, workers)
    for step in range(done, settings.steps):
        rate = learning_rate(settings.optimizer, step, settings.steps)
        engine.set_learning_rate(rate)
        with log.step():
            result = taker.take(step, stop=job.asked_to_stop())
        log.record(step + 1, result, engine, rate)
        going_on = progress.after_step(step + 1, result)
        watch.look(engine, progress.ema, step + 1)
        if not going_on:
            break
    ray.train.report({"step": progress.step})


def _batches(job: StageJob, done: int, workers: Workers) -> Iterator[MicroBatch]:
    """This rank's micro-batches, from the first that is not trained on yet."""
    config, settings = job.config, job.settings
    micro_batches = settings.gradient_accumulation_steps
    global_batch = settings.batch_size // micro_batches
    if done == settings.steps:
        return
    dataset = training_dataset(
        job.data,
        config.model,
        config.components,
        settings,
        global_batch,
        (settings.steps - done) * micro_batches,
        done * micro_batches,
        config.seed,
        rank=workers.rank,
        num_workers=workers.world,
    )
    # A split of one moves Ray Data's scheduling loop into a process of its own; inside the worker
    # it would fight with the training thread for the interpreter lock (measured: 4x slower steps).
    (rows,) = dataset.streaming_split(1, equal=False)
    device = ray_torch.get_device()
    for columns in rows.iter_batches(
        batch_size=len(rank_rows(global_batch, workers.rank, workers.world)),
        prefetch_batches=job.data.prefetch_batches,
        batch_format="numpy",
    ):
        tensors = as_tensors(columns, device)
        batch = make_batch(tensors, config.model.unet.added_embedding_dim)
        yield MicroBatch(batch, [str(name) for name in columns["sample_id"]])


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
