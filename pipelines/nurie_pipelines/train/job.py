"""One stage as it is sent to Ray: light to load.

Ray Train's controller and its driver load this module too; neither needs torch or the models, which
take seconds to import.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nurie.config.train import StageBase, TrainConfig
from nurie.tracking.origin import CONFIG_FILE, ORIGIN_FILE, PACKAGES_FILE

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
        driver_host: Name of the machine that the run is started on.
    """

    config: TrainConfig
    index: int
    start_from: Path | None
    folder: Path
    driver_host: str = field(default_factory=socket.gethostname)

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

        beside = [self.config.output / name for name in (CONFIG_FILE, ORIGIN_FILE, PACKAGES_FILE)]
        return CheckpointStore(
            self.folder / "checkpoints", self.config.keep_checkpoints, beside, say
        )


def train_stage(loop_config: dict[str, Any]) -> None:
    """Train loop of a Ray Train worker; ``loop_config["job"]`` is a ``StageJob``."""
    from nurie_pipelines.train.metrics import node_monitor
    from nurie_pipelines.train.worker import run_stage

    job: StageJob = loop_config["job"]
    with node_monitor(job):
        run_stage(job)
