"""The stage chain with every real component: Ray Train, DeepSpeed, Ray Data, MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from nurie.checkpoints.manifest import verify_manifest
from nurie.config.train import (
    EngineConfig,
    OptimizerConfig,
)
from nurie.inference.pipeline import ColorizationPipeline
from nurie.tracking.mlflow_tracker import connect
from nurie.training.stages import TrainingStage
from nurie_pipelines.train.export import model_of_checkpoint
from nurie_pipelines.train.job import StageJob
from nurie_pipelines.train.run import train
from nurie_pipelines.train.validation import FixedValidation
from nurie_pipelines.train.watch import averaged
from nurie_pipelines.train.worker import make_stage
from tests.ray.runs import losses, run_config, tracking

CPU = torch.device("cpu")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def test_chain_of_stages(prepared: Path) -> None:
    watched = tracking(prepared, "chain", validate_every=2, system_metrics_seconds=0.5)
    config = run_config(prepared, "chain", (4, 2, 2), tracking=watched, keep_best=1)
    model = train(config)
    verify_manifest(model)
    last = config.output / "background" / "checkpoints" / "step-000002"
    model_of_checkpoint(last, prepared / "exported")
    assert verify_manifest(prepared / "exported") == verify_manifest(model)
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


def test_zero_3_changes_nothing(prepared: Path) -> None:
    """ZeRO 3 of DeepSpeed and plain data parallelism: the same losses, seen and unseen."""
    curves, unets = [], []
    sharding = EngineConfig(zero_stage=3, num_workers=2)
    for engine in (sharding, EngineConfig(kind="torch", num_workers=2)):
        name = f"same-{engine.kind}"
        watched = tracking(prepared, name, validate_every=3)
        adamw = OptimizerConfig(learning_rate=1e-3)
        config = run_config(prepared, name, (6,), adamw, sample_every=4, tracking=watched)
        model = train(config.model_copy(update={"engine": engine}))
        curves.append(losses(config))
        unets.append(load_file(model / "unet" / "diffusion_pytorch_model.safetensors"))
    (totals, unseen), (other_totals, other_unseen) = curves
    assert len(totals) == 6
    assert other_totals == pytest.approx(totals, abs=1e-5)
    assert len(unseen) == 3 * 8  # two blocks have a Gram loss
    assert other_unseen == pytest.approx(unseen, abs=1e-5)
    sharded, whole = unets
    for name in sharded:
        # A step moves a weight by about the learning rate, in doubtful cases either way.
        torch.testing.assert_close(sharded[name], whole[name], atol=2e-3, rtol=0)


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
