"""What the worker says about its speed: waiting, pauses and arithmetic are told apart."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nurie.planning.gpus import gpu_of_driver
from nurie_pipelines.train import metrics
from nurie_pipelines.train.metrics import StepLog, peak_flops
from nurie_pipelines.train.step import StepResult, Workers

CPU = torch.device("cpu")
ENGINE: Any = SimpleNamespace(grad_norm=lambda: 0.5)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def step_log(folder: Path, rank: int = 0, log_every: int = 2) -> StepLog:
    config = SimpleNamespace(
        tracking=SimpleNamespace(log_every=log_every), engine=SimpleNamespace(precision="bf16")
    )
    settings = SimpleNamespace(steps=100, batch_size=8)
    operations = folder / "operations.json"
    operations.write_text("[[0, 1], [3, 2]]")
    job: Any = SimpleNamespace(
        config=config, settings=settings, folder=folder, operations_file=operations
    )
    return StepLog(job, Workers(rank, 2), CPU)


def losses(**parts: float) -> StepResult:
    return StepResult(0.0, parts, taken=True, accepted=True, stop=False, sample_ids=[])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train(log: StepLog, clock: Clock, steps: range, **parts: float) -> None:
    """Steps of 2 s, of which 0.5 s are waited for a batch; the first batch takes 30 s."""

    def slow() -> Iterator[int]:
        for step in steps:
            clock.now += 30 if step == 1 else 0.5
            yield step

    batches = log.timed(slow())
    for step in steps:
        with log.step():
            next(batches)
            clock.now += 1.5
        log.record(step, losses(**parts), ENGINE, 1e-4)


def test_times_are_of_training_alone(tmp_path: Path, clock: Clock) -> None:
    log = step_log(tmp_path)
    (tmp_path / "checkpoints" / "step-000003").mkdir(parents=True)
    train(log, clock, range(1, 4), loss=1.0)
    with log.checkpoint(3):
        (tmp_path / "checkpoints" / "step-000003" / "weights").write_bytes(b"x" * 7)
        clock.now += 60
    train(log, clock, range(4, 5), loss=4.0)
    first, checkpoint, second = lines(tmp_path)
    assert first["metrics"]["perf/startup_seconds"] == 30
    # Of steps 1 and 2, without the wait for the first batch.
    assert first["metrics"]["perf/step_seconds"] == pytest.approx(1.75)
    assert checkpoint["metrics"] == {"checkpoint/seconds": 60, "checkpoint/bytes": 7}
    assert second["step"] == 4
    found = second["metrics"]
    assert found["loss"] == pytest.approx(2.5)  # of steps 3 and 4
    assert found["grad_norm"] == 0.5
    assert found["perf/step_seconds"] == pytest.approx(2)
    assert found["perf/samples_per_second"] == pytest.approx(4)
    assert found["perf/data_wait_percent"] == pytest.approx(25)
    # Half of the eight samples, two operations each from step 4 on.
    assert found["perf/tflops_per_second"] == pytest.approx(4e-12)
    assert found["perf/memory_resident_gb"] > 0.01
    assert "perf/startup_seconds" not in found
    assert "perf/flops_utilization_percent" not in found  # no peak is known of a CPU


def test_a_mean_is_over_the_steps_that_have_the_part(tmp_path: Path, clock: Clock) -> None:
    log = step_log(tmp_path)
    log.record(1, losses(loss=1.0), ENGINE, 1e-4)
    log.record(2, losses(loss=3.0, gram=5.0), ENGINE, 1e-4)
    found = lines(tmp_path)[0]["metrics"]
    assert (found["loss"], found["gram"]) == (2.0, 5.0)


def test_a_skipped_step_is_counted_and_hides_no_other(tmp_path: Path, clock: Clock) -> None:
    log = step_log(tmp_path)
    log.record(1, losses(loss=1.0), ENGINE, 1e-4)
    bad = replace(losses(loss=float("nan")), taken=False, accepted=False)
    log.record(2, bad, ENGINE, 1e-4)
    found = lines(tmp_path)[0]["metrics"]
    assert (found["loss"], found["skipped_steps"]) == (1.0, 1.0)


def test_other_workers_write_nothing(tmp_path: Path, clock: Clock) -> None:
    log = step_log(tmp_path, rank=1)
    train(log, clock, range(1, 5), loss=1.0)
    log.write(4, {"val/loss": 1.0})
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("host", "local_rank", "files"),
    [
        ("driver", 0, []),  # The driver watches its own machine.
        ("other", 0, ["system-node_1.jsonl"]),
        ("other", 1, []),
    ],
)
def test_every_machine_is_watched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, local_rank: int, files: list[str]
) -> None:
    context = SimpleNamespace(get_local_rank=lambda: local_rank, get_node_rank=lambda: 1)
    monkeypatch.setattr(metrics.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(metrics.socket, "gethostname", lambda: host)
    tracking = SimpleNamespace(system_metrics_seconds=0.01)
    config = SimpleNamespace(tracking=tracking)
    job: Any = SimpleNamespace(config=config, folder=tmp_path, driver_host="driver")
    with metrics.node_monitor(job):
        deadline = time.monotonic() + 60
        while files and not (tmp_path / files[0]).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [path.name for path in tmp_path.iterdir()] == files


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
    ],
)
def test_peaks_by_the_names_of_drivers(name: str, tflops: int) -> None:
    gpu = gpu_of_driver(name)
    assert gpu is not None and gpu.bf16_tflops == tflops


def test_no_peak_is_invented() -> None:
    assert gpu_of_driver("NVIDIA L400") is None
    assert peak_flops(CPU, "bf16") is None
    assert peak_flops(torch.device("cuda"), "fp32") is None
