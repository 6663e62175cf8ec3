"""One stage as it is sent to Ray: light to load.

Ray Train's controller and its driver load this module too; neither needs torch or the models, which
take seconds to import.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nurie.config.train import StageBase, TrainConfig

if TYPE_CHECKING:
    from nurie_pipelines.train.checkpoints import CheckpointStore


@dataclass(frozen=True)
class StageJob:
    """One stage of a run, as sent to the workers.

    Args:
        config: The run.
        index: Which of its stages.
        start_from: Model folder with the weights to start from (None: fresh weights).
        folder: Folder of the stage: checkpoints, metrics, samples.
    """

    config: TrainConfig
    index: int
    start_from: Path | None
    folder: Path

    @property
    def settings(self) -> StageBase:
        """The stage's settings."""
        return self.config.stages[self.index]

    @property
    def kind(self) -> str:
        """The stage's name."""
        return self.config.stages[self.index].kind

    def checkpoints(self, say: Callable[[str], None] = print) -> CheckpointStore:
        """The stage's checkpoints."""
        from nurie_pipelines.train.checkpoints import CheckpointStore

        return CheckpointStore(self.folder / "checkpoints", self.config.keep_checkpoints, say)


def train_stage(loop_config: dict[str, Any]) -> None:
    """Train loop of a Ray Train worker; ``loop_config["job"]`` is a ``StageJob``."""
    from nurie_pipelines.train.worker import run_stage

    run_stage(loop_config["job"])
