"""Feeding a training stage: one Ray Data execution per worker for all of its steps.

Every row is a function of (shards, settings, seed, position), where a position counts the samples
of the whole run. Worker w of W owns the w-th part of every global batch and reads it through a
data set of its own: no split at run time, so the rows do not depend on the number of workers, and a
run that starts at batch k gets exactly what an uninterrupted run would have got there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import ray
from ray.data import Dataset, ExecutionOptions

from nurie.config.data import ReadConfig
from nurie.config.model import ModelConfig
from nurie.config.train import Stage
from nurie.data.manifest import read_manifest
from nurie.data.schedule import rank_rows
from nurie_pipelines.data.encode import FrozenEncoders
from nurie_pipelines.data.load import Loader, load_chunk
from nurie_pipelines.data.pace import pace

ROWS_PER_CHUNK = 64
"""Rows that one loading task makes at least; tasks of single batches cost more than their work."""
MAX_TASKS = 2000
"""Tasks of one data set at most; longer runs put several chunks into a task."""
BLOCK_BYTES = 16 * 2**20
"""Rows that Ray Data hands on at once, in bytes."""
OBJECT_STORE_BYTES = 16 * BLOCK_BYTES
"""Rows that may wait for one worker, in bytes; else Ray Data would run ahead to a third of RAM.

It must hold several blocks: a trainer keeps a block until the next one comes, and Ray Data makes no
block for which there is no room (a feed with blocks of 56 MB stood still for ever)."""


def training_dataset(
    read: ReadConfig,
    model: ModelConfig,
    components: Path,
    stage: Stage,
    batch_size: int,
    num_batches: int,
    start_batch: int,
    seed: int,
    *,
    rank: int = 0,
    num_workers: int = 1,
) -> Dataset:
    """Return the rows of one worker for a whole stage, in order.

    Args:
        read: The shards and how they are read.
        model: The preset, for the reference encoders.
        components: Model folder with ``image_encoder``, ``tagger`` and ``vae``.
        stage: The stage's settings; its kind decides the columns.
        batch_size: Rows of a global batch, over all workers.
        num_batches: Batches still to come.
        start_batch: First batch; that many are skipped without being read.
        seed: Seed of order, sketches and augmentation.
        rank: The worker.
        num_workers: All workers; each gets its own part of every global batch.

    Raises:
        ValueError: If the worker would get no sample or nothing is to be read.

    Columns: ``position`` int64, ``sample_id``, ``latents`` float16 [C, h, w] (encoded on the way
    when the shards hold none), ``sketch`` uint8 [H, W] (255 = paper),
    ``foreground_mask`` uint8 [H, W], ``original_area`` and ``aesthetic_score`` float32,
    ``image_tokens`` float16 [1+N, D] and ``tagger_tokens`` float16 [N, T] of the aligned reference.
    Stage ``backbone`` adds ``mismatched_image_tokens`` and ``mismatched_tagger_tokens``;
    ``foreground`` adds ``reference_image`` uint8 [H, W, 3] and ``reference_mask`` uint8 [H, W];
    ``background`` adds ``image``, the picture itself, ``background_image`` and the latter's
    ``reference_mask``.
    """
    rows = rank_rows(batch_size, rank, num_workers)
    if not rows:
        raise ValueError(f"batch_size {batch_size} leaves worker {rank} of {num_workers} no sample")
    if num_batches < 1 or start_batch < 0:
        raise ValueError(
            f"num_batches must be at least 1 and start_batch not negative, got {num_batches} and "
            f"{start_batch}"
        )
    recoloured = read_manifest(read.shards).config["source"]["kind"] == "characters"
    if read.same_palette_probability > 0 and not recoloured:
        raise ValueError(
            f"same_palette_probability is {read.same_palette_probability}, but {read.shards} holds "
            "no pictures that share a palette by construction; set it to 0"
        )
    batches_per_chunk = max(1, ROWS_PER_CHUNK // len(rows))
    chunks = -(-num_batches // batches_per_chunk)
    loader = Loader(
        read=read,
        stage=stage,
        seed=seed,
        batch_size=batch_size,
        rows_per_batch=len(rows),
        offset=rows.start,
        first_batch=start_batch,
        end_batch=start_batch + num_batches,
        batches_per_chunk=batches_per_chunk,
    )
    # One actor loads and encodes a chunk: nothing is sent between the two, caches stay warm.
    dataset = ray.data.from_items(
        [{"id": number} for number in range(chunks)], override_num_blocks=min(chunks, MAX_TASKS)
    ).map_batches(
        LoadAndEncode,
        fn_constructor_args=(loader, components, model.reference.use_tagger, read.encoder_device),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=max(1, read.num_encoder_actors // num_workers)),
        num_cpus=0.25,
        num_gpus=read.encoder_gpus,
        resources=read.encoder_resources,
    )
    dataset.context.execution_options = ingest_options()
    dataset.context.target_max_block_size = BLOCK_BYTES
    pace(dataset)
    return dataset


class LoadAndEncode:
    """Ray actor that turns chunks into rows: pictures from the shards, tokens from the encoders.

    Args:
        loader: Which rows, and how they are read.
        components: Model folder of the frozen parts.
        use_tagger: False gives zeros as tagger tokens.
        device: Where the encoders compute.
    """

    def __init__(
        self, loader: Loader, components: Path, use_tagger: bool, device: str = "cpu"
    ) -> None:
        self._loader = loader
        self._encode = FrozenEncoders(components, use_tagger, loader.stage, device)

    def __call__(self, chunk: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches of one chunk."""
        for batch in load_chunk(chunk, self._loader):
            yield self._encode(batch)


def ingest_options() -> ExecutionOptions:
    """Return Ray Data options for reading: rows in order, few of them waiting."""
    options = ExecutionOptions(preserve_order=True)
    options.resource_limits = options.resource_limits.copy(object_store_memory=OBJECT_STORE_BYTES)
    return options
