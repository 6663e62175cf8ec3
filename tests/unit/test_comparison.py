"""Evaluations against each other: same pictures only, honest probabilities, pages and tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nurie_cli import main as cli
from nurie_pipelines.evaluate.comparison import (
    ComparisonError,
    Evaluation,
    compare_evaluations,
    differences,
    verdict,
)


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
    assert cli.main(["evaluate", "--compare", str(one), str(two), "--output", "both"]) == 0
    report = json.loads((tmp_path / "both/comparison.json").read_text())
    assert report["others"][str(two)]["own"]["psnr"]["mean"] == pytest.approx(1.0)
    page = (tmp_path / "both/comparison.md").read_text()
    assert "| PSNR, dB | +1 (+1 to +1) | 0.0001 | 40 | better |" in page
    assert "<table>" in (tmp_path / "both/comparison.html").read_text()
    assert (tmp_path / "mlflow.db").exists()


def test_what_cannot_be_compared_is_refused(tmp_path: Path, values) -> None:
    one = evaluation(tmp_path / "one", *values)
    other = evaluation(tmp_path / "other", *values, seed=5)
    with pytest.raises(ComparisonError, match="no sketch, reference and seed in common"):
        differences(Evaluation.read(one), Evaluation.read(other))
    with pytest.raises(ComparisonError, match="two evaluations"):
        compare_evaluations([one], tmp_path)
    with pytest.raises(ComparisonError, match="no finished evaluation"):
        Evaluation.read(tmp_path / "gone")
