"""Ending a run between two steps: Ctrl+C and SIGTERM lead to a checkpoint first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from rich.console import Console

from nurie_pipelines.cluster import ClusterLost, has_ended
from nurie_pipelines.train.job import StageJob

_Result = TypeVar("_Result")
_LOOK_EVERY_S = 1.0


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


def beside_the_cluster(work: Callable[[], _Result]) -> _Result:
    """Do the work in a thread of its own; this one takes signals and looks after the cluster.

    In the main thread Ray Train puts its own handler in the place of ours, which ends a run without
    a checkpoint, and waits for ever for a cluster that is gone.

    Raises:
        ClusterLost: The private cluster has ended before the work; the thread is left behind.
    """
    done: Future[_Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while not wait([done], _LOOK_EVERY_S).done:
        if has_ended():
            raise ClusterLost(
                "the Ray cluster of this command has ended; the same command continues"
            )
    return done.result()
