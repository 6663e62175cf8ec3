"""CPU seconds of alternatives, measured in turn so that a noisy machine is noisy for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What is compared.
        ours: CPU seconds of our way, median.
        other: CPU seconds of the alternative, median.
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


def cpu_seconds(
    ours: Callable[[], object], other: Callable[[], object], rounds: int
) -> tuple[float, float]:
    """Median CPU seconds of two alternatives; each runs once before it counts."""
    times: tuple[list[float], list[float]] = ([], [])
    for counted in (False, *(True,) * rounds):
        for work, seconds in zip((ours, other), times, strict=True):
            start = time.process_time()
            work()
            if counted:
                seconds.append(time.process_time() - start)
    return statistics.median(times[0]), statistics.median(times[1])
