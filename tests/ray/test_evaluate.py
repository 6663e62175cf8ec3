"""The evaluation job end to end on a tiny untrained model and a data set made for the test."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from nurie.checkpoints.manifest import write_manifest
from nurie.config.data import CharactersSource, DataConfig
from nurie.config.evaluate import EvaluateConfig
from nurie.config.loader import load_config
from nurie.config.model import ModelConfig
from nurie.config.train import MlflowConfig
from nurie.data.shards import ShardReader
from nurie.evaluation.pairs import choose_pairs
from nurie.tracking.mlflow_tracker import connect

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
SIZE = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of random weights."""
    from nurie.data.tagger import Tagger
    from nurie.data.tags import all_tags
    from nurie.inference.pipeline import ColorizationPipeline
    from nurie.inference.scheduler import build_scheduler
    from nurie.models.autoencoder import build_vae
    from nurie.models.colorizer import ColorizationModel
    from nurie.models.image_encoder import build_image_encoder
    from nurie.models.tagger_network import TaggerNetwork
    from nurie.training.tagger_export import export_tagger

    folder = tmp_path_factory.mktemp("model")
    config = load_config(ROOT / "configs/model/tiny.yaml")
    assert isinstance(config, ModelConfig)
    torch.manual_seed(0)
    network = TaggerNetwork(len(all_tags()), config.reference.tagger_token_dim)
    tags = torch.zeros(1, len(all_tags()))
    export_tagger(network, config.reference.tagger_image_size, tags, folder / "tagger")
    parts = ColorizationModel(config)
    pipeline = ColorizationPipeline(
        unet=parts.unet,
        sketch_encoder=parts.sketch_encoder,
        reference_projection=parts.reference_projection,
        image_encoder=build_image_encoder(config.reference),
        vae=build_vae(config.vae),
        scheduler=build_scheduler(config.diffusion),
        tagger=Tagger.from_folder(folder / "tagger"),
        default_size=config.image_size,
    )
    pipeline.save_pretrained(folder)
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def shards(ray_session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nurie_pipelines.data.build import build_dataset

    folder = tmp_path_factory.mktemp("data")
    source = CharactersSource(max_characters=8, palettes_per_character=2, characters_per_palette=2)
    build_dataset(
        DataConfig(name="test", source=source, output=folder, image_size=SIZE, line_styles=("ink",))
    )
    return folder


@pytest.fixture(scope="module")
def config(model: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    output = tmp_path_factory.mktemp("evaluation")
    return EvaluateConfig(
        model=str(model),
        shards=shards,
        output=output,
        num_samples=5,
        num_inference_steps=2,
        batch_size=4,
        sheet_rows=3,
        tracking=MlflowConfig(uri=f"sqlite:///{output}/mlflow.db", experiment="test"),
    )


@pytest.fixture(scope="module")
def report(config: EvaluateConfig) -> dict:
    from nurie_pipelines.evaluate.run import evaluate

    return evaluate(config)


def test_report_covers_every_protocol(config: EvaluateConfig, report: dict) -> None:
    assert list(report["protocols"]) == ["own", "same_palette", "wrong"]
    for metrics in report["protocols"].values():
        for name in ("psnr", "ssim", "ms_ssim_distance", "lab_error/hair", "lab_error/skin"):
            interval = metrics[name]
            assert interval["low"] <= interval["mean"] <= interval["high"]
        assert metrics["psnr"]["n"] == 5
        assert 0 < metrics["psnr"]["mean"] < 30
    psnr = {name: metrics["psnr"]["mean"] for name, metrics in report["protocols"].items()}
    difference = report["comparisons"]["own_minus_wrong/psnr"]
    assert difference == pytest.approx(psnr["own"] - psnr["wrong"])
    assert report["skipped"] == {}
    stored = json.loads((config.output / "metrics.json").read_text())
    assert stored == {name: value for name, value in report.items() if name != "run_id"}


def test_rows_and_sheet_show_each_pair(config: EvaluateConfig, report: dict) -> None:
    rows = pq.read_table(config.output / "per_sample.parquet").to_pylist()
    assert len(rows) == 15
    assert sum(row["psnr"] for row in rows[::3]) / 5 == pytest.approx(
        report["protocols"]["own"]["psnr"]["mean"]
    )
    assert all(
        (row["sample_id"] == row["reference_id"]) == (row["protocol"] == "own") for row in rows
    )
    with Image.open(config.output / "contact_sheet.png") as sheet:
        assert sheet.width > 8 * SIZE
        assert sheet.height > 3 * SIZE


def test_mlflow_has_the_run(config: EvaluateConfig, report: dict) -> None:
    client = connect(config.tracking.uri)
    run = client.get_run(report["run_id"])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"{Path(config.model).name}/evaluate"
    assert run.data.params["num_samples"] == "5"
    own = report["protocols"]["own"]["psnr"]
    assert run.data.metrics["own/psnr"] == pytest.approx(own["mean"])
    assert run.data.metrics["own/psnr/low"] == pytest.approx(own["low"])
    names = {file.path for file in client.list_artifacts(report["run_id"])}
    assert names == {"contact_sheet.png", "metrics.json", "metrics.md", "per_sample.parquet"}


def test_batches_do_not_change_results(config: EvaluateConfig, report: dict) -> None:
    from nurie_pipelines.evaluate.actor import ColorizeAndMeasure

    reader = ShardReader(config.shards, "test")
    pairs = choose_pairs(reader, config.num_samples, config.seed).pairs
    actor = ColorizeAndMeasure(
        Path(config.model), config.model, "", config.shards, 2, config.guidance_scale, "cpu"
    )
    wrong = [pair for pair in pairs if pair.protocol == "wrong"]
    values = []
    for batch in (wrong[:1], wrong[1:]):
        columns = {
            name: np.array([asdict(pair)[name] for pair in batch]) for name in asdict(pairs[0])
        }
        values += [json.loads(text)["psnr"] for text in actor(columns)["metrics"]]
    expected = report["protocols"]["wrong"]["psnr"]["mean"]
    assert sum(values) / len(values) == pytest.approx(expected, abs=1e-2)
