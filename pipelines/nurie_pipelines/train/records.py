"""What MLflow gets to know of a training run: a parent run and a child for every stage.

Only the first start of a run needs an MLflow server that answers. Whatever happens to it later, the
training goes on: what could not be sent lies in the run's folder, and the same command, or the same
run as soon as the server is back, sends it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyarrow.csv import write_csv
from rich.console import Console

from nurie.checkpoints.manifest import MANIFEST_NAME as MODEL_MANIFEST
from nurie.checkpoints.manifest import manifest_digest, write_atomically
from nurie.config.train import TrainConfig
from nurie.data.data_folder import DataFolder
from nurie.data.manifest import MANIFEST_NAME, read_manifest, read_quarantine
from nurie.tracking.dashboard import STAGE_TAG
from nurie.tracking.mlflow_tracker import MlflowTracker
from nurie.tracking.origin import CONFIG_FILE, ORIGIN_FILE, PACKAGES_FILE, write_origin
from nurie.tracking.outbox import OutboxSender
from nurie.tracking.system import system_monitor
from nurie.tracking.tracker import DatasetVersion, RunStatus, TrackingUnavailable
from nurie_pipelines.train.deepspeed_json import deepspeed_config
from nurie_pipelines.train.job import StageJob

RUNS_FILE = "runs.json"
DEEPSPEED_FILE = "deepspeed.json"
SEND_SECONDS = 60.0
"""How long the end of a stage waits for a server that does not answer."""
_PARENT = "run"
_NOTE_TAG = "mlflow.note.content"


class RunRecords:
    """The MLflow runs of one training run, found again through ``runs.json`` in its folder.

    Args:
        config: The run; its ``resolved.yaml`` is written.
        console: Where remarks for people go.
    """

    def __init__(self, config: TrainConfig, console: Console) -> None:
        self.config = config
        self.console = console
        self.tracker = MlflowTracker(config.tracking.uri, config.tracking.experiment)
        self.origin = write_origin(config.output)
        self.data = _data_version(config.data.shards)
        self._path = config.output / RUNS_FILE
        self._known: dict[str, Any] = {"closed": []}
        if self._path.exists():
            self._known |= json.loads(self._path.read_text())

    @property
    def parent(self) -> str:
        """Id of the parent run."""
        return self._known[_PARENT]

    def starts_from(self, folder: Path | None) -> None:
        """Notes the weights that the first stage starts from: their digest, if they have one."""
        if folder is not None:
            whole = (folder / MODEL_MANIFEST).is_file()
            self._remember(starts_from=manifest_digest(folder) if whole else str(folder))

    def lineage(self) -> dict[str, str]:
        """Commit and digests of what the run's model is made from, for the registry."""
        source = {"commit": self.origin.commit, "dirty": self.origin.dirty}
        return _tags(source) | self._digests(self.data)

    def _digests(self, data: DatasetVersion) -> dict[str, str]:
        return _tags(
            {
                "config_sha256": self.origin.config_sha256,
                "lock_sha256": self.origin.lock_sha256,
                "data_sha256": data.digest,
                "starts_from": self._known.get("starts_from"),
            }
        )

    @contextmanager
    def run(self) -> Iterator[None]:
        """Around the whole training: the parent run.

        Raises:
            TrackingUnavailable: The run is new and the store does not answer.
        """
        try:
            # A remark that somebody has changed stays when the run is continued.
            note = {} if _PARENT in self._known else {_NOTE_TAG: self._note()}
            settings = self.config.model_dump(mode="json")
            self._open(_PARENT, self.config.name, settings, self.data, note)
            self._describe(self.parent)
        except TrackingUnavailable as error:
            if _PARENT not in self._known:
                raise
            self._say(f"MLflow gets this run's news later: {error}")
        watch = f"watch it with: nurie mlflow --store {self.tracker.uri}"
        self.console.print(watch, markup=False, soft_wrap=True)
        with self._ending(_PARENT):
            yield

    @contextmanager
    def stage(self, job: StageJob) -> Iterator[None]:
        """Around the training of a stage: its child run, its metrics and those of the machine."""
        self._known["closed"] = [kind for kind in self._known["closed"] if kind != job.kind]
        seconds = self.config.tracking.system_metrics_seconds
        status: RunStatus = "FAILED"
        sender = self._sender(job)
        try:
            with system_monitor(job.folder, interval=seconds):
                yield
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self._close(job, sender, status, SEND_SECONDS)

    def deliver(self, job: StageJob) -> None:
        """Sends what the tracker has not got of a finished stage; does nothing if it has all."""
        if job.kind not in self._known["closed"]:
            self._close(job, self._sender(job), "FINISHED", SEND_SECONDS / 6)

    def _sender(self, job: StageJob) -> OutboxSender:
        started = time.time_ns() // 1_000_000

        def open_run() -> str:
            name = f"{self.config.name}/{job.kind}"
            settings = job.settings.model_dump(mode="json")
            data = _data_version(job.data.shards)
            run_id = self._open(job.kind, name, settings, data, {STAGE_TAG: job.kind}, started)
            self._describe_stage(run_id, job)
            return run_id

        return OutboxSender(self.tracker, open_run, job.folder)

    def _close(
        self, job: StageJob, sender: OutboxSender, status: RunStatus, timeout: float
    ) -> None:
        if sender.close(timeout) and self._end(sender.run_id, status) and status == "FINISHED":
            self._remember(closed=[*self._known["closed"], job.kind])

    def _open(
        self,
        key: str,
        name: str,
        params: dict[str, Any],
        data: DatasetVersion,
        tags: dict[str, str] | None = None,
        started: int | None = None,
    ) -> str:
        run_id = self.tracker.start_run(
            name,
            parent_run_id=None if key == _PARENT else self.parent,
            run_id=self._known.get(key),
            tags=self._digests(data) | (tags or {}),
            start_time=started,
        )
        self._remember(**{key: run_id})
        self.tracker.log_params(run_id, params)
        self.tracker.log_dataset(run_id, data)
        return run_id

    def _note(self) -> str:
        """What MLflow shows as the run's description."""
        counts = ", ".join(f"{count} {split}" for split, count in self.data.counts.items())
        stages = "".join(
            f"- {stage.kind}: {stage.steps} steps of {stage.batch_size} samples\n"
            for stage in self.config.stages
        )
        command = f"nurie train {self.config.output / CONFIG_FILE}"
        return f"Data set **{self.data.name}** ({counts}).\n\n{stages}\nContinue: `{command}`"

    def _describe(self, run_id: str) -> None:
        """Adds the files that say what the run is, and what was left out of its data."""
        output, shards = self.config.output, self.config.data.shards
        for name in (CONFIG_FILE, ORIGIN_FILE, PACKAGES_FILE):
            self.tracker.log_artifact(run_id, output / name)
        copy = output / "data" / MANIFEST_NAME
        copy.parent.mkdir(parents=True, exist_ok=True)
        DataFolder(shards).fetch(MANIFEST_NAME, copy)
        self.tracker.log_artifact(run_id, copy, "data")
        if read_manifest(shards).quarantine:
            table = copy.with_name("quarantine.csv")
            write_csv(read_quarantine(shards), table)
            self.tracker.log_artifact(run_id, table, "data")

    def _describe_stage(self, run_id: str, job: StageJob) -> None:
        if job.config.engine.kind == "deepspeed":
            path = job.folder / DEEPSPEED_FILE
            settings = deepspeed_config(
                job.settings, job.config.engine, job.config.engine.num_workers
            )
            write_atomically(path, json.dumps(settings, indent=1).encode())
            self.tracker.log_artifact(run_id, path)

    @contextmanager
    def _ending(self, key: str) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            self._end(self._known[key], "KILLED")
            raise
        except Exception:
            self._end(self._known[key], "FAILED")
            raise
        self._end(self._known[key], "FINISHED")

    def _end(self, run_id: str, status: RunStatus) -> bool:
        """Closes a run; an unreachable server must not hide how training ended."""
        try:
            self.tracker.end_run(run_id, status)
        except TrackingUnavailable as error:
            self._say(f"MLflow run {run_id} stays open: {error}")
            return False
        return True

    def _remember(self, **known: Any) -> None:
        self._known |= known
        write_atomically(self._path, json.dumps(self._known, indent=1).encode())

    def _say(self, text: str) -> None:
        self.console.print(text, style="yellow", markup=False)


def _tags(values: dict[str, Any]) -> dict[str, str]:
    return {f"nurie.{key}": str(value) for key, value in values.items() if value is not None}


def _data_version(shards: str) -> DatasetVersion:
    manifest = read_manifest(shards)
    digest = DataFolder(shards).sha256(MANIFEST_NAME)
    return DatasetVersion(manifest.name, digest, str(shards), manifest.counts)
