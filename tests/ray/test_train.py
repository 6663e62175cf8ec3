"""The stage chain with every real component: Ray Train, DeepSpeed, Ray Data, MLflow; and faults."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from nurie.checkpoints.manifest import CheckpointError, verify_manifest
from nurie.config.data import CharactersSource, DataConfig, ReadConfig
from nurie.config.train import (
    BackboneStage,
    BackgroundStage,
    EngineConfig,
    ForegroundStage,
    GramConfig,
    GuardConfig,
    OptimizerConfig,
    TrackingConfig,
    TrainConfig,
)
from nurie.inference.pipeline import ColorizationPipeline
from nurie.tracking.mlflow_tracker import connect
from nurie.training.stages import TrainingStage
from nurie_pipelines.data.build import build_dataset
from nurie_pipelines.train.job import StageJob
from nurie_pipelines.train.run import TrainingStopped, train
from nurie_pipelines.train.validation import FixedValidation
from nurie_pipelines.train.watch import averaged
from nurie_pipelines.train.worker import make_stage
from tests.tiny import tiny_components, tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(ray_session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny components and a small data set."""
    folder = tmp_path_factory.mktemp("train")
    tiny_components(folder / "components")
    build_dataset(
        DataConfig(
            name="t",
            source=CharactersSource(palettes_per_character=2, max_characters=12),
            output=folder / "shards",
            image_size=64,
            vae=folder / "components" / "vae",
        )
    )
    return folder


def run_config(
    folder: Path,
    name: str,
    steps: tuple[int, ...],
    optimizer: OptimizerConfig | None = None,
    **changes,
) -> TrainConfig:
    kinds = (BackboneStage, ForegroundStage, BackgroundStage)
    stages = [
        kind(steps=s, batch_size=4, optimizer=optimizer or OptimizerConfig())
        for kind, s in zip(kinds, steps, strict=False)
    ]
    stages[0] = stages[0].model_copy(
        update={"gram": GramConfig(start_fraction=0.5), "ema_decay": 0.9}
    )
    settings = {
        "name": name,
        "model": tiny_config(),
        "components": folder / "components",
        "data": ReadConfig(shards=folder / "shards"),
        "stages": tuple(stages),
        "engine": EngineConfig(num_workers=2),
        "tracking": tracking(folder, name),
        "output": folder / name,
        "checkpoint_every": 2,
        "sample_every": 100,
    }
    return TrainConfig(**(settings | changes))


def tracking(folder: Path, name: str, **changes) -> TrackingConfig:
    return TrackingConfig(
        uri=f"sqlite:///{folder}/{name}.db", log_every=1, validation_samples=3, **changes
    )


def test_chain_of_stages(prepared: Path) -> None:
    watched = tracking(prepared, "chain", validate_every=2, system_metrics_seconds=0.5)
    config = run_config(prepared, "chain", (4, 2, 2), tracking=watched)
    model = train(config)
    verify_manifest(model)
    pipeline = ColorizationPipeline.from_pretrained(model)
    assert pipeline.foreground_adapter is not None and pipeline.background_encoder is not None
    image = Image.new("RGB", (64, 64), "white")
    result = pipeline(image, Image.new("RGB", (64, 64), "red"), num_inference_steps=2, seed=0)
    assert result.images[0].size == (64, 64)
    client = connect(config.tracking.uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    by_name = {run.info.run_name: run for run in runs}
    assert {"chain", "chain/backbone", "chain/foreground", "chain/background"} <= set(by_name)
    assert all(run.info.status == "FINISHED" for run in runs)
    parent = by_name["chain"].info.run_id
    backbone = by_name["chain/backbone"]
    assert backbone.data.tags["mlflow.parentRunId"] == parent
    history = client.get_metric_history(backbone.info.run_id, "loss/diffusion")
    assert [point.step for point in history] == [1, 2, 3, 4]
    gram = client.get_metric_history(backbone.info.run_id, "loss/gram_block_4")
    assert [point.step for point in gram] == [3, 4]
    unseen = client.get_metric_history(backbone.info.run_id, "val/loss")
    assert [point.step for point in unseen] == [0, 2, 4]
    measured = backbone.data.metrics
    assert {"val/gram_block_4", "val/loss_wrong_reference", "perf/tflops_per_second"} <= set(
        measured
    )
    assert 0 <= measured["perf/data_wait_percent"] <= 100
    assert 0 < measured["system/system_memory_usage_percentage"] <= 100
    checkpoint = config.output / "backbone" / "checkpoints" / "step-000004"
    written = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    assert measured["checkpoint/bytes"] == written
    for name in ("resolved.yaml", "origin.json", "packages.txt"):
        assert (checkpoint / name).read_bytes() == (config.output / name).read_bytes()
    # MLflow keeps pictures that belong to a step under this name.
    assert client.list_artifacts(backbone.info.run_id, "images")
    version = client.get_model_version_by_alias("nurie", "champion")
    assert version.run_id == parent
    for digest in ("nurie.config_sha256", "nurie.lock_sha256", "nurie.data_sha256"):
        assert version.tags[digest] == by_name["chain"].data.tags[digest]
    # The same command again finds everything done.
    assert train(config) == model


def test_a_changed_run_is_refused(prepared: Path) -> None:
    config = run_config(prepared, "refused", (2,))
    (prepared / "refused").mkdir()
    other = config.model_dump(mode="json") | {"seed": 99}
    (prepared / "refused" / "resolved.yaml").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="seed"):
        train(config)


def train_worker() -> psutil.Process | None:
    """A Ray Train worker that this test session has started."""
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                return process
        except psutil.Error:
            continue
    return None


def kill_after(checkpoint: Path, killed: list[int]) -> None:
    """Ends a training worker as soon as a checkpoint is there."""
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline:
        worker = train_worker()
        if checkpoint.exists() and worker is not None:
            os.kill(worker.pid, signal.SIGKILL)
            killed.append(worker.pid)
            return
        time.sleep(0.05)


MUON = OptimizerConfig(kind="muon", learning_rate=1e-3)
"""Steps matrices by Muon and everything else by AdamW: both kinds of state are kept and sharded."""


@pytest.fixture(scope="module")
def straight(prepared: Path) -> Path:
    """A finished run that nothing has disturbed."""
    config = run_config(prepared, "straight", (12,), MUON)
    train(config)
    return config.output


def test_a_killed_worker_changes_nothing(prepared: Path, straight: Path) -> None:
    # Neither does validation after every third step, with averaged weights.
    watched = tracking(prepared, "killed", validate_every=3)
    config = run_config(prepared, "killed", (12,), MUON, tracking=watched)
    killed: list[int] = []
    checkpoint = config.output / "backbone" / "checkpoints" / "step-000002"
    thread = threading.Thread(target=kill_after, args=(checkpoint, killed))
    thread.start()
    model = train(config)
    thread.join()
    assert killed
    assert_same_weights(model, straight / "model")


def assert_same_weights(model: Path, other: Path) -> None:
    for part in ("unet", "sketch_encoder", "reference_projection"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        expected, got = load_file(other / name), load_file(model / name)
        assert all(torch.equal(expected[key], got[key]) for key in expected)


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


def test_zero_changes_nothing(prepared: Path) -> None:
    """ZeRO-2 of DeepSpeed and plain data parallelism take the same two steps."""
    unets = []
    for engine in ("deepspeed", "torch"):
        config = run_config(prepared, engine, (2,), MUON)
        engine_config = EngineConfig(kind=engine, num_workers=2)
        model = train(config.model_copy(update={"engine": engine_config}))
        unets.append(load_file(model / "unet" / "diffusion_pytorch_model.safetensors"))
    sharded, whole = unets
    kernel = "mid_block.resnets.0.conv1.weight"
    for name in sharded:
        # A step moves a weight by about the learning rate; Muon rounds to bfloat16 on its way.
        tolerance = 2e-3 if sharded[name].ndim > 1 else 2e-5
        torch.testing.assert_close(sharded[name], whole[name], atol=tolerance, rtol=0)
    assert sharded[kernel].ndim == 4


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
    (step,) = [int(f.name.removeprefix("step-")) for f in (stage / "checkpoints").iterdir()]
    assert driver.returncode == 128 + signal.SIGTERM
    assert 0 < step < 12
    assert f"stopped after step {step}; the same command continues" in told
    alone = EngineConfig(kind="torch", num_workers=1)
    train(config.model_copy(update={"engine": alone}))
    undisturbed = run_config(prepared, "straight", (12,), MUON)
    assert losses(config)[0] == pytest.approx(losses(undisturbed)[0], rel=2e-3)


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


def losses(config: TrainConfig) -> tuple[list[float], list[float]]:
    """Total of every step of the backbone, and the losses of unseen samples."""
    lines = (config.output / "backbone" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line)["metrics"] for line in lines]
    trained = [m for m in metrics if "loss/diffusion" in m]
    totals = [sum(v for k, v in m.items() if k.startswith("loss/")) for m in trained]
    return totals, [v for m in metrics for k, v in sorted(m.items()) if k.startswith("val/")]


def test_zero_3_has_the_losses_of_zero_1(prepared: Path) -> None:
    curves = []
    for stage in (1, 3):
        optimizer = OptimizerConfig(learning_rate=1e-3)
        name = f"zero-{stage}"
        watched = tracking(prepared, name, validate_every=3)
        config = run_config(prepared, name, (6,), optimizer, sample_every=4, tracking=watched)
        train(config.model_copy(update={"engine": EngineConfig(zero_stage=stage, num_workers=2)}))
        curves.append(losses(config))
    (totals, unseen), (other_totals, other_unseen) = curves
    assert len(totals) == 6
    assert other_totals == pytest.approx(totals, abs=1e-5)
    assert len(unseen) == 3 * 8  # two blocks have a Gram loss
    assert other_unseen == pytest.approx(unseen, abs=1e-5)


def test_validation_is_fixed_and_leaves_the_stage_alone(prepared: Path) -> None:
    found = []
    for seed in (0, 1):
        config = run_config(prepared, "fixed", (4, 2, 2), seed=seed)
        for index in range(3):
            job = StageJob(config, index, None, prepared / "fixed")
            torch.manual_seed(0)
            stage = make_stage(job, CPU)
            load_same_weights(stage)
            before = {name: value.clone() for name, value in stage.state_dict().items()}
            validation = FixedValidation(job, CPU)
            state = torch.get_rng_state()
            first = validation.measure(stage)
            assert validation.measure(stage) == first
            assert torch.equal(torch.get_rng_state(), state)
            assert stage.training
            after = stage.state_dict()
            assert all(torch.equal(after[name], value) for name, value in before.items())
            assert first["val/loss"] != first["val/loss_wrong_reference"]
            found.append(first)
    assert found[:3] == found[3:]
    assert ["val/gram_block_4" in each for each in found[:3]] == [True, False, False]


def load_same_weights(stage: TrainingStage) -> None:
    """Weights that no seed decides; none is zero, so that references matter."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_averaged_weights_are_lent(prepared: Path) -> None:
    stage = make_stage(StageJob(run_config(prepared, "lent", (2,)), 0, None, prepared), CPU)
    name, parameter = next(iter(stage.trained_parameters()))
    before = parameter.detach().clone()
    with pytest.raises(RuntimeError, match="stop"), averaged(stage, {name: before + 1}):
        lent_and_stopped(parameter, before + 1)
    assert torch.equal(parameter, before)


def lent_and_stopped(parameter: torch.Tensor, average: torch.Tensor) -> None:
    assert torch.equal(parameter, average)
    raise RuntimeError("stop")


def test_a_damaged_checkpoint_is_passed_over(
    prepared: Path, straight: Path, tmp_path: Path
) -> None:
    shutil.copytree(straight, tmp_path / "damaged")
    config = run_config(prepared, "damaged", (12,), MUON, output=tmp_path / "damaged")
    checkpoints = config.output / "backbone" / "checkpoints"
    assert sorted(f.name for f in checkpoints.iterdir()) == ["step-000010", "step-000012"]
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
