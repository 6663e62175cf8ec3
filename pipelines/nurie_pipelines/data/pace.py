"""Keeps Ray Data's scheduling loop from taking a whole core while it waits for the trainer.

The loop waits only for tasks that still run. When its consumer is slower than its producers, all
tasks are done and held back, and the loop spins: measured at 60 to 100 % of a core per data set
(Ray 2.60), which training on a CPU needs itself.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ray.data import Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

PAUSE_S = 0.25
"""Four steps a second; every step dispatches all tasks that may run, each of 32 rows or more."""


class PauseBetweenSteps(ExecutionCallback):
    """Sleeps after every step of the scheduling loop."""

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Sleep for ``PAUSE_S`` seconds."""
        time.sleep(PAUSE_S)


def pace(dataset: Dataset) -> None:
    """Make the executions of a data set pause between their steps."""
    dataset.context.custom_execution_callback_classes = [
        *dataset.context.custom_execution_callback_classes,
        PauseBetweenSteps,
    ]
