"""Seconds of alternatives, measured in turn so that a noisy machine is noisy for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What is compared.
        ours: Seconds of our way, median.
        other: Seconds of the alternative, median.
        goal: Least ratio that is accepted.
        exact: Largest difference between both results, relative.
    """

    name: str
    ours: float
    other: float
    goal: float
    exact: str

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.other / self.ours


def compare(ours: Work, other: Work, rounds: int, device: str = "cpu") -> tuple[float, float]:
    """Median seconds of two alternatives, in turn; each runs once before it counts.

    Args:
        ours: Our way.
        other: The alternative.
        rounds: Counted runs of each.
        device: On a CPU, seconds are CPU time; on a GPU, time between two events.
    """
    clock = _cpu_seconds if device == "cpu" else _gpu_seconds
    times: tuple[list[float], list[float]] = ([], [])
    for counted in (False, *(True,) * rounds):
        for work, seconds in zip((ours, other), times, strict=True):
            taken = clock(work)
            if counted:
                seconds.append(taken)
    return statistics.median(times[0]), statistics.median(times[1])


def seconds_of(work: Work, rounds: int, device: str) -> float:
    """Median seconds of one piece of work, which runs once before it counts."""
    return compare(work, lambda: None, rounds, device)[0]


def _cpu_seconds(work: Work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _gpu_seconds(work: Work) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000
