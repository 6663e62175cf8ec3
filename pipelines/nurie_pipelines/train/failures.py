"""Failures of training workers, written down: Ray Train restarts workers without a word."""

from __future__ import annotations

import json
import time
from pathlib import Path

from ray.train import UserCallback
from ray.train.v2.api.context import TrainContext

FAILURES_FILE = "failures.jsonl"


class RecordFailures(UserCallback):
    """Appends every worker exception to a stage's ``failures.jsonl``.

    Args:
        folder: The stage's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FAILURES_FILE

    def after_exception(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, run_context: TrainContext, worker_exceptions: dict[int, Exception]
    ) -> None:
        """See ``ray.train.UserCallback``; runs in Ray Train's controller."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            for rank, error in worker_exceptions.items():
                line = {"time": time.time(), "rank": rank, "error": str(error)}
                file.write(json.dumps(line) + "\n")


def read_failures(folder: Path) -> list[dict]:
    """All recorded failures of a stage, oldest first."""
    path = folder / FAILURES_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def summary(error: str) -> str:
    """The last line of a traceback that says something."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
