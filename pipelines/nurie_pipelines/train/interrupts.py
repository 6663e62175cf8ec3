"""Ending a run between two steps: Ctrl+C and SIGTERM lead to a checkpoint first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

from nurie_pipelines.train.job import StageJob


class TrainingInterrupted(KeyboardInterrupt):
    """The run has been asked to end and can be continued.

    Args:
        message: Where it stands and how to go on.
        exit_code: 128 plus the signal's number.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def stop_at_a_step(job: StageJob, console: Console) -> Iterator[list[int]]:
    """While the body runs, the first signal ends the stage after its step; a second ends at once.

    Yields:
        The signals that came.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        job.ask_to_stop()
        console.print("stopping after this step, with a checkpoint; again to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
