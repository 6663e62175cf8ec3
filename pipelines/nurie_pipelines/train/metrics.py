"""What a worker measures while it trains: losses, speed, waiting, memory, arithmetic."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import psutil
import ray.train
import torch

from nurie.planning.gpus import gpu_of_driver
from nurie.planning.operations import operations_at
from nurie.tracking.outbox import METRICS_FILE, MetricOutbox
from nurie.tracking.system import system_monitor
from nurie_pipelines.train.engines import Engine
from nurie_pipelines.train.job import StageJob
from nurie_pipelines.train.step import StepResult, Workers

_GB = 1e9
Item = TypeVar("Item")


class StepLog:
    """The metrics of a stage; worker 0's go to its outbox, the others keep none.

    Losses are means over the steps since the last line. Times leave out checkpoints, validation
    and sample grids.

    Args:
        job: The stage.
        workers: This worker among all.
        device: Where it computes.
    """

    def __init__(self, job: StageJob, workers: Workers, device: torch.device) -> None:
        self._outbox = MetricOutbox(job.folder / METRICS_FILE) if workers.rank == 0 else None
        self._operations = job.operations_file
        self._share = job.settings.batch_size / workers.world
        self._every = job.config.tracking.log_every
        self._total = job.settings.steps
        self._samples = job.settings.batch_size
        self._checkpoints = job.folder / "checkpoints"
        self._device = device
        self._peak = peak_flops(device, job.config.engine.precision)
        self._process = psutil.Process()
        self._begun, self._startup = False, dict[str, float]()
        self._reset()

    def timed(self, batches: Iterator[Item]) -> Iterator[Item]:
        """The same batches; how long each was waited for is noted."""
        asked = time.monotonic()
        for batch in batches:
            got = time.monotonic()
            if self._begun:
                self._waited += got - asked
            else:
                # The first batch waits for actors to start, and the clock starts with it.
                self._begun = True
                self._startup = {"perf/startup_seconds": got - asked}
                self._reset()
            yield batch
            asked = time.monotonic()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one optimizer step."""
        yield
        self._timed_steps += 1

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Around what is not training."""
        started = time.monotonic()
        yield
        self._paused += time.monotonic() - max(started, self._since)

    @contextmanager
    def checkpoint(self, step: int) -> Iterator[None]:
        """Around the writing of a checkpoint: logs its seconds and bytes."""
        started = time.monotonic()
        with self.pause():
            yield
        seconds = time.monotonic() - started
        size = folder_bytes(self._checkpoints / f"step-{step:06d}")
        self.write(step, {"checkpoint/seconds": seconds, "checkpoint/bytes": size})

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends values of a step to the outbox of worker 0."""
        if self._outbox is not None:
            self._outbox.append(step, metrics)

    def record(self, step: int, result: StepResult, engine: Engine, rate: float) -> None:
        """Adds a step's losses; every few steps a line is written."""
        if self._outbox is None:
            return
        # A loss that is not finite would hide those of the other steps.
        for name, value in result.parts.items() if result.accepted else ():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._skipped += not result.taken
        if step % self._every and step != self._total:
            return
        metrics = {name: total / self._counts[name] for name, total in self._sums.items()}
        metrics |= {
            "grad_norm": engine.grad_norm(),
            "learning_rate": rate,
            "skipped_steps": self._skipped,
        }
        self.write(step, metrics | self._performance(step))
        self._reset()

    def _performance(self, step: int) -> dict[str, float]:
        """Speed and memory since the last line."""
        metrics = self._startup | {"perf/memory_resident_gb": self._process.memory_info().rss / _GB}
        self._startup = {}
        if self._device.type == "cuda":
            metrics["perf/memory_cuda_peak_gb"] = (
                torch.cuda.max_memory_allocated(self._device) / _GB
            )
            torch.cuda.reset_peak_memory_stats(self._device)
        if not self._timed_steps:
            return metrics
        spent = max(time.monotonic() - self._since - self._paused, 1e-9)
        seconds = spent / self._timed_steps
        metrics |= {
            "perf/step_seconds": seconds,
            "perf/samples_per_second": self._samples / seconds,
            "perf/data_wait_percent": 100 * self._waited / spent,
        }
        flops = operations_at(self._operations, step - 1)
        if flops is not None:
            metrics["perf/tflops_per_second"] = flops * self._share / seconds / 1e12
        if flops is not None and self._peak:
            achieved = flops * self._share / seconds
            metrics["perf/flops_utilization_percent"] = 100 * achieved / self._peak
        return metrics

    def _reset(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._skipped = 0
        self._since, self._paused, self._waited, self._timed_steps = time.monotonic(), 0.0, 0.0, 0


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Highest operations per second of a device in this precision.

    Returns:
        None for CPUs, for fp32 (of which PyTorch runs convolutions, but not products, in TF32) and
        for GPUs that are not known.
    """
    if device.type != "cuda" or precision == "fp32":
        return None
    gpu = gpu_of_driver(torch.cuda.get_device_name(device))
    return None if gpu is None else 1e12 * gpu.peak_tflops(precision)


def node_monitor(job: StageJob) -> AbstractContextManager:
    """Watches this worker's machine; nothing where another worker or the driver does it."""
    context = ray.train.get_context()
    if context.get_local_rank() > 0 or socket.gethostname() == job.driver_host:
        return nullcontext()
    node = f"node_{context.get_node_rank()}"
    return system_monitor(job.folder, node, job.config.tracking.system_metrics_seconds)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
