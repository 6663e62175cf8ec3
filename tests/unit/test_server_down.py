"""T9 with a real MLflow server over HTTP: it dies, the trainer goes on, it comes back."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests
from PIL import Image

from nurie.tracking.mlflow_tracker import MlflowTracker
from nurie.tracking.outbox import MetricOutbox, OutboxSender
from nurie.tracking.server import command
from nurie_cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.fault]


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@contextmanager
def server(store: str, port: int) -> Iterator[None]:
    """An MLflow server that is killed at the end, without a chance to finish anything."""
    words, environment = command(store, port=port)
    quiet = subprocess.DEVNULL
    with subprocess.Popen(words, env=environment, stdout=quiet, stderr=quiet) as process:
        try:
            wait_until_it_answers(port, process)
            yield
        finally:
            # The server's own workers would go on answering.
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
            for member in family:
                member.kill()
            psutil.wait_procs(family, timeout=60)


def wait_until_it_answers(port: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server has ended"
        try:
            if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(0.1)
    raise AssertionError("the server does not answer")


def write(folder: Path, steps: range) -> None:
    outbox = MetricOutbox(folder / "metrics.jsonl")
    for step in steps:
        outbox.append(step, {"loss": float(step)})
    outbox.close()
    path = folder / "samples" / f"step-{steps[-1]:06d}.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def test_server_down_then_up(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    store, port = f"sqlite:///{tmp_path}/mlflow.db", free_port()
    tracker = MlflowTracker(f"http://127.0.0.1:{port}", "down")
    folder = tmp_path / "stage"
    folder.mkdir()
    with server(store, port):
        run_id = tracker.start_run("run")
        sender = OutboxSender(tracker, run_id, folder, interval=0.05)
        write(folder, range(50))
        while not sender_has_sent(folder, "step-000049.png"):
            time.sleep(0.05)
    write(folder, range(50, 100))
    wall, cpu = time.monotonic(), time.process_time()
    assert not sender.close(timeout=3)
    share = (time.process_time() - cpu) / (time.monotonic() - wall)
    record_property("share of a core that a server which is away costs the driver", f"{share:.1%}")
    sender = OutboxSender(tracker, run_id, folder, interval=0.05)
    write(folder, range(100, 150))
    with server(store, port):
        assert sender.close(timeout=120)
        history = tracker.client.get_metric_history(run_id, "loss")
        pictures = [entry.path for entry in tracker.client.list_artifacts(run_id, "images")]
        steps = sorted(int(p.split("+")[2]) for p in pictures if p.endswith(".png"))
        of_points = counted(range(150), [metric.step for metric in history])
        record_property("points written, lost, doubled", of_points)
        record_property("pictures written, lost, doubled", counted((49, 99, 149), steps))
        assert [(metric.step, metric.value) for metric in history] == [
            (step, float(step)) for step in range(150)
        ]
        assert steps == [49, 99, 149]
        assert main(["mlflow", "--store", f"{tracker.uri}/"]) == 0
        address = f"down: {tracker.uri}/#/experiments/{tracker.experiment_id}/runs"
        assert address in capsys.readouterr().out


def counted(written: Sequence[int], arrived: Sequence[int]) -> str:
    """How many were written, how many of them never arrived, how many arrivals were repeated."""
    different = set(arrived)
    return f"{len(written)}, {len(set(written) - different)}, {len(arrived) - len(different)}"


def sender_has_sent(folder: Path, picture: str) -> bool:
    state = folder / ".outbox.json"
    return state.exists() and picture in state.read_text()
