"""A run that is asked to end, or whose cluster ends, ends; a stuck thread stands for Ray."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from nurie_pipelines.cluster import ClusterLost
from nurie_pipelines.train import interrupts, run
from nurie_pipelines.train.interrupts import TrainingInterrupted, beside_the_cluster
from nurie_pipelines.train.job import StageJob
from tests.ray.runs import run_config


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageJob:
    """A stage whose training never ends by itself."""
    monkeypatch.setattr(interrupts, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(run, "write_operations", lambda *_: None)
    config = run_config(tmp_path, "stuck", (4,))
    return StageJob(config, 0, None, config.output / "backbone")


def train_with(fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_trainer", lambda _: SimpleNamespace(fit=fit))


def test_the_work_is_done_in_another_thread() -> None:
    """Where Ray Train leaves the signals to us."""
    assert beside_the_cluster(threading.current_thread) is not threading.main_thread()
    with pytest.raises(ZeroDivisionError):
        beside_the_cluster(lambda: 1 / 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_workers_and_the_exit_code(
    job: StageJob, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    waiting = threading.Event()

    def fit() -> None:
        os.kill(os.getpid(), number)
        while not job.asked_to_stop():
            waiting.wait(0.01)

    train_with(fit, monkeypatch)
    with pytest.raises(TrainingInterrupted, match="stopped after step 0") as ended:
        run._fit(job)
    assert ended.value.exit_code == 128 + number


def test_a_cluster_that_ends_ends_the_run(job: StageJob, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = threading.Event()
    train_with(stuck.wait, monkeypatch)
    monkeypatch.setattr(interrupts, "has_ended", lambda: True)
    with pytest.raises(ClusterLost, match="the same command continues"):
        run._fit(job)
    stuck.set()


def test_a_signal_to_all_processes_is_a_wish_to_end(
    job: StageJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster ends first: no error, but what the signal alone leads to."""
    stuck = threading.Event()
    train_with(stuck.wait, monkeypatch)
    monkeypatch.setattr(interrupts, "has_ended", job.asked_to_stop)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(TrainingInterrupted, match="the same command continues") as ended:
        run._fit(job)
    assert ended.value.exit_code == 128 + signal.SIGTERM
    stuck.set()
