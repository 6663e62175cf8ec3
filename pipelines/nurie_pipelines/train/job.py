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

from nurie.config.data import ReadConfig
from nurie.config.train import StageBase, TrainConfig
from nurie.tracking.origin import CONFIG_FILE, ORIGIN_FILE, PACKAGES_FILE

if TYPE_CHECKING:
    from nurie_pipelines.train.checkpoints import CheckpointStore

STOP_FILE = "stop"
STOPPED_FILE = "stopped.txt"
HOW_WATCHED = {
    "tracking",
    "checkpoint_every",
    "keep_best",
    "keep_checkpoints",
    "sample_every",
    "stop_without_checkpoint",
}
"""Settings of a run that change no weight."""


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

    @property
    def data(self) -> ReadConfig:
        """The shards that the stage reads."""
        return self.settings.data or self.config.data

    @property
    def operations_file(self) -> Path:
        """Where the operations of the stage's steps are written down."""
        return self.folder / "operations.json"

    def asked_to_stop(self) -> bool:
        """Whether the driver wants the stage to end after the present step, with a checkpoint."""
        return (self.folder / STOP_FILE).exists()

    def ask_to_stop(self) -> None:
        """Makes the workers end after their present step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / STOP_FILE).touch()

    def stop_for_good(self, reason: str) -> None:
        """Called by a worker that must not be started again: the driver reports the reason."""
        (self.folder / STOPPED_FILE).write_text(reason)

    def reason_of_stop(self) -> str | None:
        """Why the workers have stopped for good (None: they have not)."""
        path = self.folder / STOPPED_FILE
        return path.read_text() if path.exists() else None

    def start_anew(self) -> None:
        """Forgets what earlier starts of the stage were asked or have reported."""
        for name in (STOP_FILE, STOPPED_FILE):
            (self.folder / name).unlink(missing_ok=True)

    def checkpoints(self, say: Callable[[str], None] = print) -> CheckpointStore:
        """The stage's checkpoints."""
        from nurie_pipelines.train.checkpoints import CheckpointStore

        beside = [self.config.output / name for name in (CONFIG_FILE, ORIGIN_FILE, PACKAGES_FILE)]
        keep, best = self.config.keep_checkpoints, self.config.keep_best
        return CheckpointStore(self.folder / "checkpoints", keep, beside, say, best)


def train_stage(loop_config: dict[str, Any]) -> None:
    """Train loop of a Ray Train worker; ``loop_config["job"]`` is a ``StageJob``."""
    from nurie_pipelines.train.metrics import node_monitor
    from nurie_pipelines.train.worker import run_stage

    job: StageJob = loop_config["job"]
    with node_monitor(job):
        run_stage(job)
