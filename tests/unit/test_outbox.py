"""Metrics survive a dead tracker, a killed worker and a restarted driver, and are stored once."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import nurie
from nurie.tracking.mlflow_tracker import MlflowTracker, flatten_params
from nurie.tracking.outbox import MetricOutbox, OutboxSender
from nurie.tracking.tracker import (
    DatasetVersion,
    MetricPoint,
    TrackingError,
    TrackingUnavailable,
)


class MemoryTracker:
    """A tracker that can be dead; keeps what it gets."""

    def __init__(self) -> None:
        self.alive = True
        self.refuses = False
        self.points: list[MetricPoint] = []
        self.images: list[tuple[str, int | None]] = []
        self.calls = threading.Semaphore(0)

    def log_points(self, run_id: str, points: list[MetricPoint]) -> None:
        self.calls.release()
        self._answer()
        self.points += points

    def log_image(
        self, run_id: str, image: Image.Image, path: str, step: int | None = None
    ) -> None:
        self._answer()
        self.images.append((path, step))

    def _answer(self) -> None:
        if not self.alive:
            raise TrackingUnavailable("connection refused")
        if self.refuses:
            raise TrackingError("no such run")

    def values(self) -> list[tuple[int, str, float]]:
        return [(point.step, point.name, point.value) for point in self.points]


@pytest.fixture
def tracker() -> MemoryTracker:
    return MemoryTracker()


def sender(tracker: MemoryTracker, folder: Path, run_id: str = "run") -> OutboxSender:
    return OutboxSender(tracker, run_id, folder, interval=0.01)


def write(folder: Path, steps: range, value: float = 1.0) -> None:
    outbox = MetricOutbox(folder / "metrics.jsonl")
    for step in steps:
        outbox.append(step, {"loss": value, "lr": 0.1})
    outbox.close()


def test_everything_arrives_in_order(tracker: MemoryTracker, tmp_path: Path) -> None:
    write(tmp_path, range(1200))
    assert sender(tracker, tmp_path).close()
    assert tracker.values() == [
        (step, name, value) for step in range(1200) for name, value in [("loss", 1.0), ("lr", 0.1)]
    ]


def test_dead_then_alive_loses_nothing(tracker: MemoryTracker, tmp_path: Path) -> None:
    tracker.alive = False
    write(tmp_path, range(3))
    sending = sender(tracker, tmp_path)
    assert tracker.calls.acquire(timeout=30)
    assert tracker.calls.acquire(timeout=30)
    tracker.alive = True
    assert sending.close()
    assert len(tracker.points) == 6


def test_dead_at_the_end_keeps_the_rest_for_the_next_driver(
    tracker: MemoryTracker, tmp_path: Path
) -> None:
    write(tmp_path, range(2))
    assert sender(tracker, tmp_path).close()
    tracker.alive = False
    write(tmp_path, range(2, 4))
    assert not sender(tracker, tmp_path).close(timeout=0.05)
    tracker.alive = True
    assert sender(tracker, tmp_path).close()
    assert [point.step for point in tracker.points if point.name == "loss"] == [0, 1, 2, 3]


def test_restart_sends_nothing_twice(tracker: MemoryTracker, tmp_path: Path) -> None:
    write(tmp_path, range(4), value=1.0)
    assert sender(tracker, tmp_path).close()
    write(tmp_path, range(2, 6), value=2.0)  # The worker resumed from its checkpoint at step 2.
    assert sender(tracker, tmp_path).close()
    losses = [(step, value) for step, name, value in tracker.values() if name == "loss"]
    assert losses == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0)]


def test_another_run_gets_everything(tracker: MemoryTracker, tmp_path: Path) -> None:
    write(tmp_path, range(2))
    assert sender(tracker, tmp_path, "first").close()
    assert sender(tracker, tmp_path, "second").close()
    assert len(tracker.points) == 8


def test_partial_line_waits_and_a_cut_line_is_skipped(
    tracker: MemoryTracker, tmp_path: Path
) -> None:
    write(tmp_path, range(1))
    path = tmp_path / "metrics.jsonl"
    with path.open("ab") as stream:
        stream.write(b'{"step": 1, "time": 5, "metr')
    assert sender(tracker, tmp_path).close()
    assert [point.step for point in tracker.points] == [0, 0]
    write(tmp_path, range(2, 3))  # The restarted worker finds the cut line and ends it.
    assert sender(tracker, tmp_path).close()
    assert [point.step for point in tracker.points] == [0, 0, 2, 2]


def test_a_line_completed_later_is_sent_whole(tracker: MemoryTracker, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "time": 5, "metr')
    assert sender(tracker, tmp_path).close()
    with path.open("ab") as stream:
        stream.write(b'ics": {"loss": 3.0}}\n')
    assert sender(tracker, tmp_path).close()
    assert tracker.points == [MetricPoint("loss", 3.0, 1, 5)]


def test_a_run_is_opened_when_the_tracker_is_back(tracker: MemoryTracker, tmp_path: Path) -> None:
    tries: list[bool] = []

    def open_run() -> str:
        tries.append(tracker.alive)
        tracker._answer()
        return "run"

    tracker.alive = False
    write(tmp_path, range(3))
    sending = OutboxSender(tracker, open_run, tmp_path, interval=0.01)
    while len(tries) < 2:
        time.sleep(0.01)
    tracker.alive = True
    assert sending.close()
    assert sending.run_id == "run"
    assert tries.count(True) == 1
    assert len(tracker.points) == 6


def test_files_of_machines_are_sent_with_the_metrics(
    tracker: MemoryTracker, tmp_path: Path
) -> None:
    write(tmp_path, range(2))
    for file in ("system.jsonl", "system-node_1.jsonl"):
        MetricOutbox(tmp_path / file).append(1, {f"{file}/cpu": 50.0})
    (tmp_path / "failures.jsonl").write_text("no metrics\n")
    assert sender(tracker, tmp_path).close()
    MetricOutbox(tmp_path / "system.jsonl").append(2, {"system.jsonl/cpu": 60.0})
    assert sender(tracker, tmp_path).close()
    found = [(p.step, p.name, p.value) for p in tracker.points if p.name.endswith("cpu")]
    assert sorted(found) == [
        (1, "system-node_1.jsonl/cpu", 50.0),
        (1, "system.jsonl/cpu", 50.0),
        (2, "system.jsonl/cpu", 60.0),
    ]
    assert len(tracker.points) == 7


def test_samples_are_sent_once_and_unfinished_ones_later(
    tracker: MemoryTracker, tmp_path: Path
) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    Image.new("RGB", (4, 4)).save(samples / "step-000500.png")
    (samples / "step-001000.png").write_bytes(b"\x89PNG half")
    assert sender(tracker, tmp_path).close()
    assert tracker.images == [("samples", 500)]
    Image.new("RGB", (4, 4)).save(samples / "step-001000.png")
    assert sender(tracker, tmp_path).close()
    assert tracker.images == [("samples", 500), ("samples", 1000)]


def test_rejected_points_are_counted_and_do_not_block(
    tracker: MemoryTracker, tmp_path: Path
) -> None:
    tracker.refuses = True
    write(tmp_path, range(2))
    sending = sender(tracker, tmp_path)
    assert sending.close()
    assert sending.rejected == 4


@pytest.fixture(scope="module")
def mlflow_tracker(tmp_path_factory: pytest.TempPathFactory) -> MlflowTracker:
    folder = tmp_path_factory.mktemp("store")
    return MlflowTracker(f"sqlite:///{folder}/new/mlflow.db", "test")


def test_mlflow_gets_each_step_once_and_images(
    mlflow_tracker: MlflowTracker, tmp_path: Path
) -> None:
    tracker = mlflow_tracker
    params = {"stages": [{"kind": "backbone", "steps": 3}], "long": "x" * 7000, "a b*": None}
    parent = tracker.start_run("parent", params=params)
    run_id = tracker.start_run("child", parent_run_id=parent, tags={"stage": "backbone"})
    folder = tmp_path / "run"
    write(folder, range(3))
    (folder / "samples").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "samples" / "step-000002.png")
    assert OutboxSender(tracker, run_id, folder).close()
    (folder / ".outbox.json").unlink()  # A crash between sending and remembering.
    assert OutboxSender(tracker, run_id, folder).close()
    tracker.log_image(run_id, Image.new("RGB", (4, 4)), "grids/final.png")
    tracker.end_run(run_id)

    history = tracker.client.get_metric_history(run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 1.0), (1, 1.0), (2, 1.0)]
    run = tracker.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["nurie.version"] == nurie.__version__
    assert {"mlflow.user", "mlflow.source.name"} <= run.data.tags.keys()
    assert (Path(tracker.uri.removeprefix("sqlite:///")).parent / "mlartifacts").is_dir()
    assert {"images", "grids"} <= {f.path for f in tracker.client.list_artifacts(run_id)}

    logged = tracker.client.get_run(parent).data.params
    assert logged["stages.0.kind"] == "backbone"
    assert logged["a b_"] == "None"
    assert len(logged["long"]) == 6000


def test_a_lost_answer_doubles_nothing(
    mlflow_tracker: MlflowTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has written what was sent, and its answer does not arrive: it is sent again."""
    client, lost = mlflow_tracker.client, []
    run_id = mlflow_tracker.start_run("lost answers")
    for method in ("log_batch", "log_image"):
        real = getattr(client, method)

        def deaf(*args: Any, real: Any = real, name: str = method, **kwargs: Any) -> None:
            real(*args, **kwargs)
            if name not in lost:
                lost.append(name)
                raise ConnectionError("reset by peer")

        monkeypatch.setattr(client, method, deaf)
    write(tmp_path, range(3))
    (tmp_path / "samples").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "samples" / "step-000002.png")
    assert OutboxSender(mlflow_tracker, run_id, tmp_path, interval=0.01).close()
    assert lost == ["log_batch", "log_image"]
    history = client.get_metric_history(run_id, "loss")
    assert [metric.step for metric in history] == [0, 1, 2]
    pictures = [entry.path for entry in client.list_artifacts(run_id, "images")]
    assert len([path for path in pictures if path.endswith(".png")]) == 1


def test_data_is_an_input_of_the_run_once(mlflow_tracker: MlflowTracker) -> None:
    data = DatasetVersion("characters", "0123456789abcdef" * 4, "/data/c", {"train": 90, "test": 9})
    run_id = mlflow_tracker.start_run("data")
    mlflow_tracker.log_dataset(run_id, data)
    mlflow_tracker.log_dataset(run_id, data)
    (found,) = mlflow_tracker.client.get_run(run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("characters", data.digest[:36])
    tags = {tag.key: tag.value for tag in found.tags}
    assert tags == {"mlflow.data.context": "training", "sha256": data.digest}


def test_continued_run_keeps_its_id_and_first_params(mlflow_tracker: MlflowTracker) -> None:
    tracker = mlflow_tracker
    run_id = tracker.start_run("run", params={"steps": 3})
    tracker.end_run(run_id, "KILLED")
    again = tracker.start_run("run", run_id=run_id, params={"steps": 5, "new": 1})
    run = tracker.client.get_run(run_id)
    assert again == run_id
    assert run.info.status == "RUNNING"
    assert run.data.params == {"steps": "3", "new": "1"}
    assert run.data.tags["changed.steps"] == "5"
    fresh = tracker.start_run("run", run_id="0" * 32)
    assert tracker.client.get_run(fresh).data.tags["nurie.continues"] == "0" * 32


def test_dead_server_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingUnavailable):
        MlflowTracker("http://127.0.0.1:9", "test").start_run("run")


def test_scalar_lists_stay_one_parameter() -> None:
    assert flatten_params({"betas": (0.9, 0.99), "optimizer": {"lr": 1}}) == {
        "betas": "(0.9, 0.99)",
        "optimizer.lr": "1",
    }
