"""Bad steps: losses that are not finite or far above the usual are skipped, counted, answered."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from statistics import median
from typing import Any

from nurie.config.train import GuardConfig

SKIPPED_FILE = "skipped.jsonl"


class Answer(Enum):
    """What to do after a step."""

    GO_ON = "go on"
    ROLL_BACK = "roll back"
    STOP = "stop"


@dataclass
class LossGuard:
    """Judges every step's loss by those before; the same on every worker.

    Args:
        config: Limits.
        history: Losses of the last good steps.
        skipped: Skipped steps of the stage.
        in_a_row: Skipped steps since the last good one or roll-back.
    """

    config: GuardConfig
    history: list[float] = field(default_factory=list)
    skipped: int = 0
    in_a_row: int = 0

    def accepts(self, loss: float) -> bool:
        """Whether a step with this loss (mean of all workers) may change the weights."""
        if not math.isfinite(loss):
            return False
        if len(self.history) < self.config.window:
            return True
        return loss <= self.config.max_loss_ratio * median(self.history)

    def record(self, loss: float, *, good: bool) -> Answer:
        """Takes note of a finished step."""
        if good:
            self.history = [*self.history[1 - self.config.window :], loss]
            self.in_a_row = 0
            return Answer.GO_ON
        self.skipped += 1
        self.in_a_row += 1
        if self.skipped > self.config.max_skipped_steps:
            return Answer.STOP
        if self.in_a_row >= self.config.roll_back_after:
            self.in_a_row = 0
            return Answer.ROLL_BACK
        return Answer.GO_ON

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run judges alike."""
        return {"history": self.history, "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load(self, state: dict[str, Any]) -> None:
        """Takes over what ``state`` gave."""
        self.history = state["history"]
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


@dataclass(frozen=True)
class SkippedStep:
    """A step that changed nothing.

    Args:
        step: Its number, from 1.
        loss: Its loss, as text where it is no number.
        samples: Ids of its samples.
    """

    step: int
    loss: float
    samples: list[str]


def note_skipped(folder: Path, skipped: SkippedStep) -> None:
    """Appends a skipped step to the stage's ``skipped.jsonl``."""
    line = {"step": skipped.step, "loss": str(skipped.loss), "samples": skipped.samples}
    with (folder / SKIPPED_FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")
