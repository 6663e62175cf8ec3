"""Training runs under faults: killed, ended, spiked, damaged; real processes all of them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from nurie.checkpoints.manifest import CheckpointError, verify_manifest
from nurie.config.train import EngineConfig, GuardConfig
from nurie.tracking.mlflow_tracker import connect
from nurie_pipelines.train.job import StageJob
from nurie_pipelines.train.run import TrainingStopped, train
from tests.ray.runs import MUON, assert_same_weights, losses, run_config, tracking

REPEATS = int(os.environ.get("NURIE_REPEATS", "1"))
"""How often the faults are made that come at random moments; see ``make faults``."""
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def train_workers() -> list[int]:
    """Ids of the Ray Train workers that this test session has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def kill_after(checkpoint: Path, chance: random.Random, recovery: list[float]) -> None:
    """Ends a training worker when a checkpoint is there; notes the seconds to the next step."""
    deadline = time.monotonic() + 280
    while not (checkpoint.exists() and train_workers()):
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
    os.kill(chance.choice(train_workers()), signal.SIGKILL)
    killed = time.time()
    metrics = checkpoint.parents[1] / "metrics.jsonl"
    while metrics.stat().st_mtime < killed + 1:  # the other worker may finish its step
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
    recovery.append(metrics.stat().st_mtime - killed)


@pytest.fixture(scope="module")
def straight(prepared: Path) -> Path:
    """A finished run that nothing has disturbed."""
    config = run_config(prepared, "straight", (12,), MUON)
    train(config)
    return config.output


@pytest.mark.fault
@pytest.mark.parametrize("seed", range(REPEATS))
def test_a_killed_worker_changes_nothing(
    prepared: Path, straight: Path, seed: int, record_property: Callable[[str, object], None]
) -> None:
    """Any worker, at any step; neither does validation with averaged weights change anything."""
    name, chance = f"killed-{seed}", random.Random(seed)
    watched = tracking(prepared, name, validate_every=3)
    config = run_config(prepared, name, (12,), MUON, tracking=watched)
    recovery: list[float] = []
    step = chance.choice((2, 4, 6, 8))
    checkpoint = config.output / "backbone" / "checkpoints" / f"step-{step:06d}"
    thread = threading.Thread(target=kill_after, args=(checkpoint, chance, recovery))
    thread.start()
    model = train(config)
    thread.join()
    assert recovery
    assert_same_weights(model, straight / "model")
    record_property("seconds from the kill to the next step", round(recovery[0], 1))


@pytest.mark.fault
@pytest.mark.long
def test_a_killed_driver_changes_nothing(prepared: Path, straight: Path) -> None:
    """The command dies, its private cluster with it; the same command finishes the run."""
    config = run_config(prepared, "driver", (12,), MUON)
    file = prepared / "driver.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "nurie_cli.main", "train", str(file)]
    with subprocess.Popen(command, cwd=prepared) as driver:
        checkpoint = config.output / "backbone" / "checkpoints" / "step-000004"
        deadline = time.monotonic() + 240
        while not checkpoint.exists() and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        children = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
    assert checkpoint.exists()
    _, alive = psutil.wait_procs(children, timeout=120)
    assert not alive
    assert not (config.output / "model").exists()
    assert subprocess.run(command, cwd=prepared, check=False).returncode == 0
    assert_same_weights(config.output / "model", straight / "model")
    client = connect(config.tracking.uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (stage,) = [run for run in runs if run.info.run_name == "driver/backbone"]
    history = client.get_metric_history(stage.info.run_id, "loss/diffusion")
    assert [point.step for point in history] == list(range(1, 13)), "every step once"


@pytest.mark.fault
@pytest.mark.long
def test_a_terminated_run_goes_on_with_another_number_of_workers(
    prepared: Path, straight: Path
) -> None:
    """SIGTERM leads to a checkpoint between two others; one worker and plain torch finish it."""
    config = run_config(prepared, "terminated", (12,), MUON, checkpoint_every=100)
    file = prepared / "terminated.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "nurie_cli.main", "train", str(file)]
    stage = config.output / "backbone"
    with subprocess.Popen(command, cwd=prepared, stderr=subprocess.PIPE, text=True) as driver:
        deadline = time.monotonic() + 240
        while not (stage / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        driver.send_signal(signal.SIGTERM)
        _, told = driver.communicate(timeout=120)
    (step,) = [int(f.name.removeprefix("step-")) for f in (stage / "checkpoints").glob("step-*")]
    assert driver.returncode == 128 + signal.SIGTERM
    assert 0 < step < 12
    assert f"stopped after step {step}; the same command continues" in told
    assert len(losses(config)[0]) == step, "no step is lost"
    alone = EngineConfig(kind="torch", num_workers=1)
    train(config.model_copy(update={"engine": alone}))
    undisturbed = run_config(prepared, "straight", (12,), MUON)
    assert losses(config)[0] == pytest.approx(losses(undisturbed)[0], rel=5e-3)


@pytest.mark.fault
@pytest.mark.long
def test_spikes_are_skipped_rolled_back_and_end_the_run(prepared: Path) -> None:
    """With a limit just above the median about every second step is a spike."""
    guard = GuardConfig(max_loss_ratio=1.0001, window=2, roll_back_after=2, max_skipped_steps=2)
    config = run_config(prepared, "spikes", (40,), sample_every=100).model_copy(
        update={"guard": guard, "engine": EngineConfig(kind="torch", num_workers=1)}
    )
    with pytest.raises(TrainingStopped, match=r"guard\.max_skipped_steps 2.*skipped\.jsonl"):
        train(config)
    lines = (config.output / "backbone" / "skipped.jsonl").read_text().splitlines()
    skipped = [json.loads(line) for line in lines]
    assert len(skipped) == 3
    assert all(len(each["samples"]) == 4 and float(each["loss"]) > 0 for each in skipped)
    # Nobody has started it again: the failures of workers are listed there.
    assert not (config.output / "backbone" / "failures.jsonl").exists()


@pytest.mark.fault
def test_a_damaged_checkpoint_is_passed_over(
    prepared: Path, straight: Path, tmp_path: Path
) -> None:
    shutil.copytree(straight, tmp_path / "damaged")
    config = run_config(prepared, "damaged", (12,), MUON, output=tmp_path / "damaged")
    checkpoints = config.output / "backbone" / "checkpoints"
    assert sorted(f.name for f in checkpoints.glob("step-*")) == ["step-000010", "step-000012"]
    with (checkpoints / "step-000012" / "state" / "rank-00001.safetensors").open("r+b") as file:
        file.seek(-2000, 2)
        file.write(b"damage")
    with pytest.raises(CheckpointError, match=r"rank-00001\.safetensors"):
        verify_manifest(checkpoints / "step-000012")
    said: list[str] = []
    job = StageJob(config, 0, None, config.output / "backbone")
    newest = job.checkpoints(said.append).newest()
    assert newest is not None and newest[1].step == 10
    assert "step-000012" in said[0]
