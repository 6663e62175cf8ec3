"""The evaluation job end to end on a tiny untrained model and a data set made for the test."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from nurie.checkpoints.manifest import write_manifest
from nurie.config.data import CharactersSource, DataConfig
from nurie.config.evaluate import (
    AblationsConfig,
    DisentanglementConfig,
    EncoderConfig,
    EvaluateConfig,
    GramMapsConfig,
    NetworksConfig,
    ResultsConfig,
)
from nurie.config.loader import load_config
from nurie.config.model import ModelConfig
from nurie.config.train import MlflowConfig
from nurie.data.shards import ShardReader
from nurie.evaluation.pairs import choose_pairs
from nurie.evaluation.tasks import ShardSource, Task, swap_tasks
from nurie.tracking.mlflow_tracker import connect
from nurie_pipelines.evaluate.ablation_report import report_ablations
from nurie_pipelines.evaluate.ablation_runs import plan_runs
from nurie_pipelines.evaluate.actor import Colorize, Score
from nurie_pipelines.evaluate.outputs import FILES
from nurie_pipelines.evaluate.store import ResultStore
from tests.tiny_controlnet import tiny_controlnet

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
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
    controlnet = tiny_controlnet(tmp_path_factory.mktemp("controlnet"), is_xl=False)
    return EvaluateConfig(
        model=str(model),
        shards=shards,
        output=output,
        num_samples=5,
        num_inference_steps=2,
        batch_size=4,
        sheet_rows=3,
        networks=NetworksConfig(encoder=EncoderConfig(path=model / "image_encoder")),
        peers=("mean_colour",),
        controlnet=controlnet,
        disentanglement=DisentanglementConfig(num_sketches=2, num_references=2),
        gram_maps=GramMapsConfig(num_sketches=1),
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
        assert metrics["kid"]["n"] == 5
        assert -1 <= metrics["reference_likeness"]["mean"] <= 1
    psnr = {name: metrics["psnr"]["mean"] for name, metrics in report["protocols"].items()}
    difference = report["comparisons"]["own_minus_wrong/psnr"]
    assert difference == pytest.approx(psnr["own"] - psnr["wrong"])
    assert report["skipped"] == {}
    stored = json.loads((config.output / "metrics.json").read_text())
    assert stored == {name: value for name, value in report.items() if name != "run_id"}


def test_rows_and_sheet_show_each_pair(config: EvaluateConfig, report: dict) -> None:
    every = pq.read_table(config.output / "per_sample.parquet").to_pylist()
    # 3 protocols of 5 samples and 2 sets of swaps, by the model and by two peers.
    assert len(every) == 3 * (15 + 2)
    rows = [row for row in every if row["system"] == "model" and row["protocol"] != "swaps"]
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
    assert names == set(FILES)


def test_peers_and_disentanglement_stand_beside_the_model(report: dict) -> None:
    assert list(report["peers"]) == ["mean_colour", "controlnet_ip_adapter"]
    assert list(report["peers"]["mean_colour"]) == ["own", "same_palette", "wrong"]
    assert list(report["disentanglement"]) == ["model", *report["peers"]]
    assert len(report["networks"]["controlnet_ip_adapter"]) == 64
    swaps = report["disentanglement"]
    for metrics in swaps.values():
        assert metrics["disentanglement"]["n"] == 2
        assert 0 <= metrics["shape_score"]["mean"] <= 1
        kinds = {name for name in metrics if name.startswith("entanglement/")}
        assert {"entanglement/noise", "entanglement/other_seed"} <= kinds
    # A peer has no noise: another seed changes nothing.
    assert swaps["mean_colour"]["entanglement/other_seed"]["mean"] == 0.0


def test_the_page_is_self_contained(config: EvaluateConfig, report: dict) -> None:
    page = (config.output / "report.html").read_text()
    for title in ("By reference", "Disentanglement", "Gram heat maps", "Best, median and worst"):
        assert title in page
    assert page.count("data:image/webp") > 40
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "<script" not in page
    galleries = [part for part in page.split("<h2 ") if "Worst by" in part or "worst, ref" in part]
    assert len(galleries) > 5
    for gallery in galleries:
        labels = re.findall(r"<img[^>]*>([a-z]+)</div>", gallery)
        assert labels == ["sketch", "reference", "result", "truth"] * gallery.count("<figure>")


def test_a_finished_evaluation_makes_nothing_anew(
    config: EvaluateConfig, report: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nurie_pipelines.evaluate import job
    from nurie_pipelines.evaluate.run import evaluate

    def refuse(items: list) -> None:
        raise AssertionError(f"{len(items)} groups are made again")

    monkeypatch.setattr(job, "_dataset", refuse)
    copy = config.model_copy(update={"output": tmp_path / "copy"})
    shutil.copytree(config.output, copy.output)
    again = evaluate(copy.model_copy(update={"num_samples": 4, "peers": ()}))
    assert again["num_samples"] == 4
    with pytest.raises(AssertionError, match="made again"):
        evaluate(copy.model_copy(update={"seed": 3}))


def test_batch_size_grouping_and_order_change_nothing(
    config: EvaluateConfig, report: dict, tmp_path: Path
) -> None:
    """The actors, called as Ray calls them, on the tasks in another order and grouping."""
    rows = pq.read_table(config.output / "per_sample.parquet").to_pylist()
    expected = {row["key"]: row for row in rows}
    reader = ShardReader(config.shards, "test")
    pairs = choose_pairs(reader, config.num_samples, config.seed).pairs
    tasks = [Task.of_pair(pair) for pair in pairs if pair.protocol != "own"][::-1]
    tasks += swap_tasks(reader, pairs, 1, 2)
    smaller = config.model_copy(update={"batch_size": 3})
    colorize = Colorize(smaller, Path(config.model), "")
    score = Score(config.shards, config.networks, from_shards=True)
    measured = {}
    for group in ([tasks[0]], tasks[1:5], tasks[5:]):
        made = colorize(pa.table({"tasks": [[task.to_json() for task in group]]}))
        for row in score(made).to_pylist():
            measured[row["key"]] = json.loads(row["metrics"])
    assert len(measured) == len(tasks)
    for key, metrics in measured.items():
        # Batches of another size round differently; a level of 255 may flip here and there.
        wanted = {name: expected[key][name] for name in metrics}
        assert metrics == pytest.approx(wanted, rel=5e-3, abs=5e-3), key


def test_ablations_compare_variants_by_picture(
    config: EvaluateConfig, report: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two variants that are copies of one evaluation, one of them a little worse."""
    monkeypatch.chdir(ROOT)
    loaded = load_config(
        "configs/eval/ablations-nano.yaml",
        {
            "variants": {"full": {}, "less": {}},
            "seeds": [0],
            "output": str(tmp_path),
            "evaluate_settings": {"shards": str(config.shards)},
            "tracking_uri": config.tracking.uri,
        },
    )
    assert isinstance(loaded, AblationsConfig)
    runs = plan_runs(loaded)
    for run in runs:
        shutil.copytree(config.output, run.evaluate.output)
    path = runs[1].evaluate.output / "per_sample.parquet"
    rows = pq.read_table(path).to_pylist()
    worse = [row | {"psnr": row["psnr"] and row["psnr"] - 1.5} for row in rows]
    pq.write_table(pa.Table.from_pylist(worse), path)
    found = report_ablations(loaded, runs)["protocols"]["own"]["psnr"]
    assert found["full"]["mean"] - found["less"]["mean"] == pytest.approx(1.5)
    assert found["full"]["n"] == 5
    page = (tmp_path / "ablations.md").read_text()
    assert "## `own`, n=5" in page
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 5 * SIZE
    runs = connect(config.tracking.uri).search_runs(
        [connect(config.tracking.uri).get_experiment_by_name("ablations-nano").experiment_id]
    )
    assert runs[0].data.metrics["less/own/psnr"] == pytest.approx(found["less"]["mean"])


@pytest.fixture
def theirs(config: EvaluateConfig, report: dict, tmp_path: Path) -> Path:
    """The pictures of two systems, as files with a manifest."""
    folder, store, source = (
        tmp_path / "theirs",
        ResultStore(config.output),
        ShardSource(config.shards),
    )
    folder.mkdir()
    lines = []
    own = {row["key"]: row for row in store.rows() if row["task"].protocol == "own"}
    for row in [own[key] for key in sorted(own)[-8:]]:
        order = source.orders(row["task"])[0]
        system, sample = row["task"].system, row["task"].sample_id
        name = f"{sample}-{system}"
        (folder / f"{name}-result.png").write_bytes(store.pictures([row["key"]])[row["key"]][0])
        Image.fromarray(order.sample.sketch).save(folder / f"{sample}-sketch.png")
        Image.fromarray(order.reference.image).save(folder / f"{sample}.png")
        files = f"{sample}-sketch.png,{sample}.png,{name}-result.png,{sample}.png"
        lines.append(f"{files},own,{system},{name}")
    header = "sketch,reference,result,truth,protocol,system,id\n"
    (folder / "manifest.csv").write_text(header + "\n".join(lines) + "\n")
    return folder


def test_pictures_made_elsewhere_are_measured_alike(
    config: EvaluateConfig, theirs: Path, tmp_path: Path
) -> None:
    """The numbers they had, whatever the order of the manifest and the number of workers."""
    from nurie_pipelines.evaluate.run import evaluate_results

    results = ResultsConfig(
        name="theirs",
        results=theirs,
        output=tmp_path / "measured",
        networks=config.networks,
        tracking=config.tracking,
        num_actors=3,
    )
    found = evaluate_results(results)
    run = connect(config.tracking.uri).get_run(found["run_id"])
    assert run.info.run_name == "theirs/evaluate"
    assert found["num_samples"] == 8
    assert "metrics against the truth" not in found["skipped"]
    measured = pq.read_table(results.output / "per_sample.parquet").to_pylist()
    before = pq.read_table(config.output / "per_sample.parquet").to_pylist()
    expected = {
        f"{row['sample_id']}-{row['system']}": row for row in before if row["protocol"] == "own"
    }
    for row in measured:
        had = expected[row["sample_id"]]
        assert row["psnr"] == pytest.approx(had["psnr"])
        assert row["reference_likeness"] == pytest.approx(had["reference_likeness"], abs=1e-5)
    assert (results.output / "report.html").is_file()
    header, *lines = (theirs / "manifest.csv").read_text().splitlines()
    (theirs / "manifest.csv").write_text("\n".join([header, *lines[::-1]]) + "\n")
    alone = {"output": tmp_path / "alone", "num_actors": 1}
    again = evaluate_results(results.model_copy(update=alone))
    for part in ("protocols", "peers"):
        assert again[part] == found[part], "the same numbers, to the last digit"
