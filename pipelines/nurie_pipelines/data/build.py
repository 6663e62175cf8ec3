"""``nurie data build``: a Ray Data job from a source to shards and a manifest."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from functools import partial

import pyarrow as pa
import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nurie import __version__
from nurie.config.data import DataConfig
from nurie.data.manifest import (
    QUARANTINE_NAME,
    Manifest,
    ShardEntry,
    write_manifest,
    write_quarantine,
)
from nurie.data.picture_models import PictureMap
from nurie.data.plan import Plan, ShardPlan
from nurie_pipelines.cluster import connect
from nurie_pipelines.data.latents import EncodeLatents, append_latents
from nurie_pipelines.data.models import MODEL_STYLE, ApplyModels
from nurie_pipelines.data.render import GIVEN_STYLE, render_shard
from nurie_pipelines.data.resume import BuildRecord, finished_shards, model_paths, prepare_folder
from nurie_pipelines.data.sources import SourcePlan, model_digest, plan_source, vae_digest
from nurie_pipelines.data.write import SHARD_COLUMN, stored_latent_channels, write_shard

ROWS_PER_WAVE = 2**19
"""Planned samples that Ray Data is given at once, about a kilobyte each."""


def build_dataset(config: DataConfig, force: bool = False) -> Manifest:
    """Build a data set, or finish one that was interrupted.

    Shards that are whole and belong to this very build are kept; the bytes are the same for the
    same configuration, whatever the number of CPUs and however often the build was interrupted.

    Args:
        config: What to build.
        force: Delete shards of another build in the output folder instead of refusing.

    Returns:
        The manifest, written last.

    Raises:
        FileNotFoundError: If the source or the autoencoder does not exist.
        ValueError: If the source has too few pictures, or the folder holds another build.
    """
    console = Console(stderr=True)
    inputs = {"vae": vae_digest(config.vae)} if config.vae else {}
    for model in (config.line_model, config.mask_model):
        if model is not None:
            PictureMap(model)  # a wrong model is an error now, not in a worker
    source = plan_source(config, console)
    inputs |= {name: model_digest(path) for name, path in model_paths(config).items()}
    record = BuildRecord.of(config, inputs | {"source": source.digest})
    prepare_folder(config.output, record, force)

    shards = source.plan.shards(config.rows_per_shard)
    done = finished_shards(config.output, [shard.file for shard in shards], record)
    missing = [shard for shard in shards if shard.file not in done]
    if missing:
        started, rows = time.monotonic(), sum(shard.num_rows for shard in missing)
        _build_missing(config, record, missing, source, done, console)
        console.print(f"{rows} samples in {time.monotonic() - started:.0f} s: {config.output}")
    manifest = _manifest(config, record, source, shards, done)
    write_manifest(config.output, manifest)
    if left_out := source.quarantine.num_rows:
        console.print(f"{left_out} files left out: {QUARANTINE_NAME} names each")
    return manifest


def _build_missing(
    config: DataConfig,
    record: BuildRecord,
    missing: list[ShardPlan],
    source: SourcePlan,
    done: dict[str, str],
    console: Console,
) -> None:
    rows = {shard.file: shard.num_rows for shard in missing}
    per_wave = max(1, ROWS_PER_WAVE // config.rows_per_shard)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("samples"),
        TimeRemainingColumn(),
    )
    num_samples = source.plan.num_rows
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(config.name, total=num_samples)
        progress.advance(bar, num_samples - sum(rows.values()))
        for first in range(0, len(missing), per_wave):
            wave = missing[first : first + per_wave]
            for file, digest in _run(config, record, wave, source):
                done[file] = digest
                progress.advance(bar, rows[file])


def _run(
    config: DataConfig, record: BuildRecord, shards: list[ShardPlan], source: SourcePlan
) -> Iterator[tuple[str, str]]:
    """Render, encode and write some shards; yield file and digest of each as it is done."""
    connect(config.num_cpus)
    tasks = ray.data.TaskPoolStrategy(size=min(config.num_cpus, len(shards)))
    dataset = ray.data.from_arrow([_with_file(source.plan, shard) for shard in shards])
    # One block is one shard from here to the file; Ray must not cut large ones.
    dataset.context.target_max_block_size = None
    whole = {"batch_size": None, "batch_format": "pyarrow"}
    dataset = dataset.map_batches(
        partial(render_shard, config=config, folder=source.folder), compute=tasks, **whole
    )
    if config.line_model or config.mask_model:
        dataset = dataset.map_batches(
            ApplyModels,
            fn_constructor_args=(config,),
            compute=ray.data.ActorPoolStrategy(size=min(config.num_model_actors, len(shards))),
            num_cpus=0,
            num_gpus=config.model_gpus,
            **whole,
        )
    if config.vae:
        dataset = dataset.map_batches(
            EncodeLatents,
            fn_constructor_args=(config.vae,),
            compute=ray.data.ActorPoolStrategy(size=min(config.num_cpus, len(shards))),
            num_cpus=0,  # it waits for the rendering tasks and must not take a place from them
            **whole,
        )
    else:
        dataset = dataset.map_batches(_without_latents, **whole)
    dataset = dataset.map_batches(
        partial(write_shard, folder=config.output, record_digest=record.digest), **whole
    )
    for row in dataset.iter_rows():
        yield row["file"], row["sha256"]


def _with_file(plan: Plan, shard: ShardPlan) -> pa.Table:
    names = pa.array([shard.file] * shard.num_rows, pa.string())
    return plan.table(shard.start, shard.stop).append_column(SHARD_COLUMN, names)


def _without_latents(rows: pa.Table) -> pa.Table:
    return append_latents(rows, [None] * rows.num_rows, ())


def _manifest(
    config: DataConfig,
    record: BuildRecord,
    source: SourcePlan,
    shards: list[ShardPlan],
    done: dict[str, str],
) -> Manifest:
    entries = tuple(
        ShardEntry(
            file=shard.file,
            split=shard.split,
            bucket=shard.bucket,
            rows=shard.num_rows,
            sha256=done[shard.file],
        )
        for shard in shards
    )
    counts: Counter[str] = Counter()
    for entry in entries:
        counts[entry.split] += entry.rows
    reasons = Counter(reason.as_py().split(":")[0] for reason in source.quarantine["reason"])
    listed = write_quarantine(config.output, source.quarantine) if reasons else ""
    return Manifest(
        name=config.name,
        created_by=f"nurie {__version__}",
        config=record.config,
        inputs=record.inputs,
        counts=dict(counts),
        image_size=config.image_size,
        sketch_styles=_styles(config, source),
        roles=source.roles,
        latent_channels=stored_latent_channels(config.output, entries[0].file),
        mismatch_rounds=config.mismatch_rounds,
        shards=entries,
        quarantine=dict(reasons),
        quarantine_sha256=listed,
    )


def _styles(config: DataConfig, source: SourcePlan) -> tuple[str, ...]:
    """Line styles of every sample, in the order in which they are made."""
    given = source.plan.samples["sketch_source"].null_count == 0
    return (
        *([GIVEN_STYLE] if given else []),
        *config.line_styles,
        *([MODEL_STYLE] if config.line_model else []),
    )
