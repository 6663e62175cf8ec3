"""What Ray Data costs: a feed against the same work in one process, and what a run waits for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import ray

from benchmarks.measure import Row
from nurie.config.data import ReadConfig
from nurie.config.loader import load_config
from nurie.config.model import ModelConfig
from nurie.config.train import BackboneStage, TrackingConfig, TrainConfig
from nurie.data.manifest import read_manifest
from nurie.tracking.outbox import METRICS_FILE
from nurie_pipelines.cluster import connect
from nurie_pipelines.data.ingest import (
    OBJECT_STORE_BYTES,
    ROWS_PER_CHUNK,
    LoadAndEncode,
    training_dataset,
)
from nurie_pipelines.data.load import Loader
from nurie_pipelines.train.run import train

COMPONENTS = Path("assets/nano")
BATCH = 16
STEPS = 20


def run(samples: int = 1024) -> Iterator[Row]:
    """Measure a feed of ``nano``, and the build of its data with one core and with two."""
    folder = Path(tempfile.mkdtemp(prefix="nurie-bench-"))
    try:
        two, one = (_build(folder, cores) for cores in (2, 1))
        yield Row("build with 2 cores | with 1 (wall time)", two, one, 1.2, _same(folder))
        connect(2)
        yield _overhead(folder / "2", samples)
        yield _waiting(folder)
    finally:
        ray.shutdown()
        shutil.rmtree(folder)


def _waiting(folder: Path) -> Row:
    """A short real run of ``nano`` on Ray Train: how long do its steps wait for batches?"""
    config = load_config("configs/train/nano.yaml")
    assert isinstance(config, TrainConfig)
    changes = {
        "stages": (config.stages[0].model_copy(update={"steps": STEPS}),),
        "data": ReadConfig(shards=folder / "2"),
        "output": folder / "run",
        "tracking": TrackingConfig(
            uri=f"sqlite:///{folder}/mlflow.db", log_every=1, validation_samples=0
        ),
        "checkpoint_every": STEPS,
        "sample_every": 2 * STEPS,
    }
    config = config.model_copy(update=changes)
    train(config)
    seconds = waited = 0.0
    for line in (config.output / "backbone" / METRICS_FILE).read_text().splitlines():
        found = json.loads(line)["metrics"]
        if "perf/data_wait_percent" in found:
            step = config.stages[0].batch_size / found["perf/samples_per_second"]
            seconds += step
            waited += step * found["perf/data_wait_percent"] / 100
    return Row(
        "steps of a nano run | without their waiting for data (wall time)",
        seconds,
        seconds - waited,
        0.95,
        f"{100 * waited / seconds:.1f} % waiting",
    )


def _build(folder: Path, cores: int) -> float:
    """Wall seconds of the command, start included, on that many cores."""
    settings = {
        "source.palettes_per_character": 2,
        "rows_per_shard": 64,
        "num_cpus": cores,
        "output": folder / str(cores),
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = ["data", "build", "configs/data/characters.yaml", *flags]
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "nurie_cli.main", *command],
        check=True,
        capture_output=True,
        preexec_fn=partial(os.sched_setaffinity, 0, range(cores)),
    )
    return time.monotonic() - start


def _same(folder: Path) -> str:
    one, two = ([s.sha256 for s in read_manifest(folder / name).shards] for name in ("1", "2"))
    return "same bytes" if one == two else "BYTES DIFFER"


def _overhead(shards: Path, samples: int) -> Row:
    model = load_config("configs/model/nano.yaml")
    assert isinstance(model, ModelConfig)
    read, stage = ReadConfig(shards=shards), BackboneStage(steps=1)
    batches = samples // BATCH
    plain_ids, plain_seconds = _in_process(read, stage, batches)
    dataset = training_dataset(read, model, COMPONENTS, stage, BATCH, batches, 0, seed=0)
    (rows,) = dataset.streaming_split(1, equal=False)
    ids: list[str] = []
    started, memory, most, looking = 0.0, 0.0, 0.0, 0.0
    for batch in rows.iter_batches(batch_size=BATCH, batch_format="numpy"):
        ids += batch["sample_id"].tolist()
        if len(ids) % (4 * ROWS_PER_CHUNK) == ROWS_PER_CHUNK:
            before = time.process_time()
            most = max(most, _memory())
            looking += time.process_time() - before
        if len(ids) == ROWS_PER_CHUNK:  # everything has been loaded and started by now
            started, memory, looking = _cpu_seconds(), most, 0.0
    spent = (_cpu_seconds() - started - looking) / (samples - ROWS_PER_CHUNK)
    growth = (most - memory) / OBJECT_STORE_BYTES
    same = "same rows" if ids == plain_ids else "ROWS DIFFER"
    exact = f"{same}, grew by {growth:.1f}x the budget"
    return Row(
        "feed through Ray Data | in-process (at most 1.6x)", spent, plain_seconds, 0.62, exact
    )


def _in_process(read: ReadConfig, stage: BackboneStage, batches: int) -> tuple[list[str], float]:
    """Sample ids in order, and CPU seconds per sample after the first chunk."""
    per_chunk = ROWS_PER_CHUNK // BATCH
    loader = Loader(read, stage, 0, BATCH, BATCH, 0, 0, batches, per_chunk)
    work = LoadAndEncode(loader, COMPONENTS, use_tagger=True)
    ids: list[str] = []
    start = 0.0
    for chunk in range(batches // per_chunk):
        if chunk == 1:
            start = time.process_time()
        for batch in work({"id": np.array([chunk])}):
            ids += [str(name) for name in batch["sample_id"]]
    return ids, (time.process_time() - start) / (len(ids) - ROWS_PER_CHUNK)


def _family() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _cpu_seconds() -> float:
    total = 0.0
    for process in _family():
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _memory() -> float:
    total = 0.0
    for process in _family():
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total
