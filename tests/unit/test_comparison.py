"""Evaluations against each other: same pictures only, honest probabilities, pages and tables."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nurie.data.manifest import file_sha256
from nurie.evaluation.tasks import MODEL
from nurie.tracking.mlflow_tracker import connect
from nurie_cli import main as cli
from nurie_pipelines.evaluate import comparison
from nurie_pipelines.evaluate.actor import SCORED_SCHEMA
from nurie_pipelines.evaluate.comparison import (
    ComparisonError,
    Evaluation,
    compare_evaluations,
    differences,
    verdict,
)
from nurie_pipelines.evaluate.manifest import manifest_tasks, read_entries
from nurie_pipelines.evaluate.outputs import LOGGED_FILE
from nurie_pipelines.evaluate.store import ResultStore


def evaluation(folder: Path, psnr: np.ndarray, line_f1: np.ndarray, seed: int = 0) -> Path:
    folder.mkdir()
    rows = [
        {
            "system": system,
            "sample_id": f"s{number}",
            "reference_id": f"r{number}",
            "protocol": "own",
            "style": "ink",
            "seed": seed,
            "key": f"{system}/own/{number}/s{number}",
            "psnr": float(psnr[number]) if system == "model" else 0.0,
            "line_f1": float(line_f1[number]),
        }
        for system in ("model", "mean_colour")
        for number in range(len(psnr))
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "per_sample.parquet")
    (folder / "metrics.json").write_text("{}")
    return folder


@pytest.fixture
def values() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(20, 3, 40), rng.uniform(0.9, 1.0, 40)


def test_a_real_difference_is_told_from_chance(tmp_path: Path, values) -> None:
    psnr, lines = values
    noise = np.random.default_rng(1).normal(0, 0.01, 40)
    one = evaluation(tmp_path / "one", psnr, lines)
    two = evaluation(tmp_path / "two", psnr[:30] - 0.5, (lines + noise)[:30])
    found = differences(Evaluation.read(one), Evaluation.read(two))["own"]
    assert found["psnr"].mean == pytest.approx(-0.5)
    assert found["psnr"].n == 30
    assert verdict("psnr", found["psnr"]) == "worse"
    assert verdict("line_f1", found["line_f1"]) == "-"
    # Holm with two metrics: the smaller probability counts twice.
    assert found["psnr"].p == pytest.approx(2 / 20_001)


def test_the_comparison_is_written(tmp_path: Path, values, monkeypatch, capsys) -> None:
    psnr, lines = values
    one = evaluation(tmp_path / "one", psnr, lines)
    two = evaluation(tmp_path / "two", psnr + 1, lines)
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/theirs.db"
    place = {"uri": uri, "experiment": "theirs", "run_id": None}
    (one / LOGGED_FILE).write_text(json.dumps(place))
    assert cli.main(["evaluate", "--compare", str(one), str(two), "--output", "both"]) == 0
    report = json.loads((tmp_path / "both/comparison.json").read_text())
    assert report["others"][str(two)]["own"]["psnr"]["mean"] == pytest.approx(1.0)
    page = (tmp_path / "both/comparison.md").read_text()
    assert "| PSNR, dB | +1.00 (+1.00 to +1.00) | 0.0001 | 40 | better |" in page
    assert "<table>" in (tmp_path / "both/comparison.html").read_text()
    # Logged where the first evaluation was, and nowhere else.
    run = connect(uri).get_run(json.loads((tmp_path / "both" / LOGGED_FILE).read_text())["run_id"])
    assert connect(uri).get_experiment(run.info.experiment_id).name == "theirs"
    (mean,) = (value for name, value in run.data.metrics.items() if name.endswith("psnr/mean"))
    assert mean == pytest.approx(1.0)
    assert not (tmp_path / "mlflow.db").exists()


def test_a_comparison_may_be_logged_elsewhere(
    tmp_path: Path, values, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = []
    monkeypatch.setattr(comparison, "log_to_mlflow", lambda place, *_: places.append(place))
    one, two = (evaluation(tmp_path / name, *values) for name in ("one", "two"))
    words = ["evaluate", "--compare", str(one), str(two), "--output", str(tmp_path / "both")]
    assert cli.main(words) == 0
    assert cli.main([*words, "--tracking.experiment", "mine"]) == 0
    assert cli.main([*words, "--tracking.uri=http://mlflow:5000"]) == 0
    assert [(place.uri, place.experiment) for place in places] == [
        ("sqlite:///mlflow.db", "nurie"),
        ("sqlite:///mlflow.db", "mine"),
        ("http://mlflow:5000", "nurie"),
    ]


def with_pictures(folder: Path, results: Path, delta_e: float) -> Path:
    """The evaluation of a picture made elsewhere."""
    (entry,) = manifest_tasks(read_entries(results))
    row = {
        "key": entry.key,
        "task": entry.to_json(),
        "pictures": [(results / "result.png").read_bytes()],
        "metrics": json.dumps({"delta_e": delta_e}),
    }
    store = ResultStore(folder)
    store.claim({})
    assert list(store.add([pa.Table.from_pylist([row], SCORED_SCHEMA)])) == [1]
    keys = {"sample_id": entry.sample_id, "reference_id": "", "style": "", "seed": 0}
    flat = {"system": MODEL, "protocol": "own", "key": entry.key, "delta_e": delta_e, **keys}
    pq.write_table(pa.Table.from_pylist([flat]), folder / "per_sample.parquet")
    digest = file_sha256(results / "manifest.csv")
    report = {"results": str(results), "manifest_digest": digest}
    (folder / "metrics.json").write_text(json.dumps(report))
    return folder


def labels_of_pictures(page: str) -> list[str]:
    return re.findall(r"<img[^>]*>([a-z]+)</div>", page)


def test_what_changed_most_is_shown_with_sketch_reference_and_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "log_to_mlflow", lambda *_: None)
    results = tmp_path / "theirs"
    results.mkdir()
    for name in ("sketch", "reference", "result", "truth"):
        Image.new("RGB", (32, 32), (200, 40, 40)).save(results / f"{name}.png")
    names = "sketch,reference,result,truth,protocol"
    manifest = results / "manifest.csv"
    manifest.write_text(f"{names}\nsketch.png,reference.png,result.png,truth.png,own\n")
    folders = [
        with_pictures(tmp_path / name, results, delta_e)
        for name, delta_e in (("one", 3.0), ("two", 5.0))
    ]
    compare_evaluations(folders, tmp_path / "both")
    page = tmp_path / "both/comparison.html"
    assert labels_of_pictures(page.read_text()) == [
        *("sketch", "reference", "first", "second", "truth")
    ]
    # Inputs that are no longer those that were coloured are not shown as such.
    manifest.write_text(f"{manifest.read_text()}sketch.png,reference.png,result.png,,own\n")
    compare_evaluations(folders, tmp_path / "both")
    assert labels_of_pictures(page.read_text()) == ["first", "second"]


def test_what_cannot_be_compared_is_refused(tmp_path: Path, values) -> None:
    one = evaluation(tmp_path / "one", *values)
    other = evaluation(tmp_path / "other", *values, seed=5)
    with pytest.raises(ComparisonError, match="no sketch, reference and seed in common"):
        differences(Evaluation.read(one), Evaluation.read(other))
    with pytest.raises(ComparisonError, match="two evaluations"):
        compare_evaluations([one], tmp_path)
    with pytest.raises(ComparisonError, match="no finished evaluation"):
        Evaluation.read(tmp_path / "gone")
