"""The MLflow runs of a training: what they say, and that a dead server stops nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import requests
import yaml
from rich.console import Console

from nurie.config.data import ReadConfig
from nurie.config.train import BackboneStage, ForegroundStage, TrackingConfig, TrainConfig
from nurie.data.manifest import Manifest, file_sha256, write_manifest, write_quarantine
from nurie.tracking.mlflow_tracker import connect
from nurie.tracking.outbox import MetricOutbox
from nurie.tracking.tracker import TrackingUnavailable
from nurie_pipelines.train import records as module
from nurie_pipelines.train.job import StageJob
from nurie_pipelines.train.records import RunRecords
from tests.tiny import tiny_config


class Line:
    """A client behind a line that can be cut."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.cut = False

    def __getattr__(self, name: str) -> Any:
        if self.cut:
            raise requests.ConnectionError("connection refused")
        return getattr(self.client, name)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


def run_config(folder: Path, store: str) -> TrainConfig:
    shards = folder / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    left_out = {"file": ["a.png"], "step": ["check"], "reason": ["empty: no pixels"]}
    manifest = {
        "name": "pictures",
        "created_by": "test",
        "config": {},
        "inputs": {},
        "counts": {"train": 9, "test": 1},
        "image_size": 64,
        "sketch_styles": ("ink",),
        "roles": (),
        "latent_channels": None,
        "mismatch_rounds": 1,
        "shards": (),
        "quarantine": {"empty": 1},
        "quarantine_sha256": write_quarantine(shards, pa.table(left_out)),
    }
    write_manifest(shards, Manifest(**manifest))
    config = TrainConfig(
        name="run",
        model=tiny_config(),
        components=folder / "components",
        data=ReadConfig(shards=shards),
        stages=(BackboneStage(steps=4), ForegroundStage(steps=2)),
        tracking=TrackingConfig(uri=store, experiment=folder.name, system_metrics_seconds=0.1),
        output=folder / "run",
    )
    config.output.mkdir(exist_ok=True)
    (config.output / "resolved.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return config


def open_records(config: TrainConfig) -> tuple[RunRecords, Line]:
    records = RunRecords(config, Console(quiet=True))
    line = Line(records.tracker.client)
    records.tracker.client = line  # pyright: ignore[reportAttributeAccessIssue]
    return records, line


def jobs(config: TrainConfig) -> list[StageJob]:
    return [
        StageJob(config, index, None, config.output / stage.kind)
        for index, stage in enumerate(config.stages)
    ]


def work(job: StageJob, value: float = 1.0) -> None:
    """What the workers of a stage leave."""
    outbox = MetricOutbox(job.folder / "metrics.jsonl")
    for step in range(1, job.settings.steps + 1):
        outbox.append(step, {"loss": value})
    outbox.close()


def found_runs(config: TrainConfig) -> dict[str, Any]:
    client = connect(config.tracking.uri)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def steps_of(config: TrainConfig, run: Any) -> list[int]:
    history = connect(config.tracking.uri).get_metric_history(run.info.run_id, "loss")
    return [metric.step for metric in history]


def test_a_run_says_what_it_was_made_from(tmp_path: Path, store: str) -> None:
    config = run_config(tmp_path, store)
    records, _ = open_records(config)
    start = tmp_path / "start"
    start.mkdir()
    (start / "MANIFEST.json").write_text("{}")
    with records.run():
        records.starts_from(start)
        with records.stage(jobs(config)[0]):
            work(jobs(config)[0])
        with records.stage(jobs(config)[1]):
            work(jobs(config)[1])
    runs = found_runs(config)
    parent, child = runs["run"], runs["run/backbone"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    digest = file_sha256(config.data.shards / "manifest.json")
    for run in (parent, child):
        assert run.data.tags["nurie.config_sha256"] == records.origin.config_sha256
        assert run.data.tags["nurie.lock_sha256"] == records.origin.lock_sha256
        assert run.data.tags["nurie.data_sha256"] == digest
        (data,) = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == ("pictures", digest[:36])
    assert child.data.tags["nurie.starts_from"] == file_sha256(start / "MANIFEST.json")
    assert records.lineage()["nurie.starts_from"] == child.data.tags["nurie.starts_from"]
    note = parent.data.tags["mlflow.note.content"]
    assert "**pictures** (9 train, 1 test)" in note
    assert "- foreground: 2 steps of 16 samples" in note
    assert child.data.tags["nurie.stage"] == "backbone"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.params["steps"] == "4"
    assert steps_of(config, child) == [1, 2, 3, 4]
    client = connect(store)
    files = {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    assert files == {"resolved.yaml", "origin.json", "packages.txt", "data"}
    data_files = {entry.path for entry in client.list_artifacts(parent.info.run_id, "data")}
    assert data_files == {"data/manifest.json", "data/quarantine.csv"}
    assert "deepspeed.json" in {e.path for e in client.list_artifacts(child.info.run_id)}
    written = json.loads((config.output / "backbone" / "deepspeed.json").read_text())
    assert written["zero_optimization"]["stage"] == config.engine.zero_stage


def test_a_new_run_needs_a_server(tmp_path: Path, store: str) -> None:
    records, line = open_records(run_config(tmp_path, store))
    line.cut = True
    with pytest.raises(TrackingUnavailable), records.run():
        raise AssertionError("training has begun without a run")


def test_a_server_that_dies_loses_nothing(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEND_SECONDS", 0.2)
    config = run_config(tmp_path, store)
    first, second = jobs(config)
    records, line = open_records(config)
    with records.run():
        with records.stage(first):
            line.cut = True
            work(first)
        with records.stage(second):
            work(second)
        assert "run/foreground" not in found_runs(config)
        line.cut = False
        for job in (first, second):
            records.deliver(job)
    runs = found_runs(config)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert steps_of(config, runs["run/backbone"]) == [1, 2, 3, 4]
    assert steps_of(config, runs["run/foreground"]) == [1, 2]


def test_the_next_driver_delivers_what_is_left(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEND_SECONDS", 0.2)
    config = run_config(tmp_path, store)
    job = jobs(config)[0]
    records, line = open_records(config)
    with records.run(), records.stage(job):
        line.cut = True
        work(job)
    runs = found_runs(config)
    assert runs["run"].info.status == "RUNNING"  # Nobody could say that it has ended.
    again, line = open_records(config)
    line.cut = True
    with again.run():  # A known run goes on without a server ...
        line.cut = False
        again.deliver(job)  # ... which gets everything when it is back.
        line.cut = True
        again.deliver(job)  # Nothing is left: the server is not even asked.
        line.cut = False
    runs = found_runs(config)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert again.parent == records.parent
    assert steps_of(config, runs["run/backbone"]) == [1, 2, 3, 4]


def stop(job: StageJob, error: type[BaseException]) -> None:
    work(job)
    raise error("stop")


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")]
)
def test_runs_end_as_the_training_does(
    tmp_path: Path, store: str, error: type[BaseException], status: str
) -> None:
    config = run_config(tmp_path / status, store)
    records, _ = open_records(config)
    job = jobs(config)[0]
    with pytest.raises(error), records.run(), records.stage(job):
        stop(job, error)
    assert {run.info.status for run in found_runs(config).values()} == {status}
    again, _ = open_records(config)
    with again.run(), again.stage(job):
        work(job, value=2.0)
    run = found_runs(config)["run/backbone"]
    assert run.info.status == "FINISHED"
    history = connect(store).get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(s, 1.0) for s in (1, 2, 3, 4)]
