"""A progress bar with ETA for a stage, fed by the metrics its workers write."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from nurie.tracking.outbox import METRICS_FILE
from nurie_pipelines.train.failures import read_failures, summary
from nurie_pipelines.train.job import StageJob

_INTERVAL_S = 1.0


@contextmanager
def follow_progress(job: StageJob, console: Console) -> Iterator[None]:
    """Shows steps, losses, speed and remaining time while the body trains the stage."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[status]}"),
    )
    stop = threading.Event()
    with Progress(*columns, console=console, speed_estimate_period=120) as progress:
        task = progress.add_task(job.kind, total=job.settings.steps, status="starting workers")
        told = len(read_failures(job.folder))  # of an earlier start
        thread = threading.Thread(
            target=_follow, args=(job, progress, task, told, stop), daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _follow(
    job: StageJob, progress: Progress, task: TaskID, told: int, stop: threading.Event
) -> None:
    path = job.folder / METRICS_FILE
    while True:
        ending = stop.is_set()
        for failure in read_failures(job.folder)[told:]:
            told += 1
            reason = f"worker {failure['rank']} failed: {summary(failure['error'])}"
            progress.console.print(reason, style="yellow", markup=False)
        line = _last_line(path)
        if line is not None:
            progress.update(task, completed=line["step"], status=_status(line["metrics"]))
        if ending:
            return
        stop.wait(_INTERVAL_S)


def _last_line(path: Path) -> dict | None:
    """The newest complete line of a metrics file that tells of training steps."""
    if not path.exists():
        return None
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 8192))
        lines = stream.read().split(b"\n")[:-1]
    for line in reversed(lines):
        if line.startswith(b"{") and b'"loss/diffusion"' in line:
            return json.loads(line)
    return None


def _status(metrics: dict[str, float]) -> str:
    gram = [value for name, value in metrics.items() if name.startswith("loss/gram")]
    text = f"loss {metrics['loss/diffusion']:.4f}"
    if gram:
        text += f"  gram {sum(gram):.4f}"
    if "perf/samples_per_second" in metrics:
        text += f"  {metrics['perf/samples_per_second']:.1f} samples/s"
    return text
