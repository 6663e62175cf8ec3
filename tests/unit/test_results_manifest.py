"""Pictures made elsewhere: the manifest, its faults, and the measuring of what it lists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from nurie.config.evaluate import NetworksConfig
from nurie_pipelines.evaluate.actor import Score
from nurie_pipelines.evaluate.job import load_results
from nurie_pipelines.evaluate.manifest import (
    AS_GIVEN,
    ManifestSource,
    ResultsError,
    manifest_tasks,
    read_entries,
)

HEADER = "sketch,reference,result,truth,mask,reference_mask,protocol,id,system\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two results of one sketch: the truth itself, and one in wrong colours and half size."""
    image = np.full((64, 64, 3), 255, np.uint8)
    image[16:48, 16:48] = (200, 60, 40)
    sketch = np.full((64, 64), 255, np.uint8)
    sketch[16:48, [16, 47]] = sketch[[16, 47], 16:48] = 0
    mask = np.where((image < 250).any(axis=2), 255, 0).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "truth.png")
    Image.fromarray(image).save(tmp_path / "right.png")
    Image.fromarray(255 - image).resize((32, 32)).save(tmp_path / "wrong.png")
    Image.fromarray(sketch).save(tmp_path / "sketch.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    rest = "truth.png,mask.png,mask.png,own,a"
    (tmp_path / "manifest.csv").write_text(
        HEADER
        + f"sketch.png,truth.png,right.png,{rest},good\n"
        + f"sketch.png,truth.png,wrong.png,{rest},bad\n"
    )
    return tmp_path


def measured(folder: Path) -> dict[str, dict[str, float]]:
    tasks = manifest_tasks(read_entries(folder))
    made = load_results(pa.table({"task": [task.to_json() for task in tasks]}), folder)
    rows = Score(folder, NetworksConfig(), from_shards=False)(made).to_pylist()
    return {row["key"]: json.loads(row["metrics"]) for row in rows}


def test_results_are_measured_against_what_is_known(folder: Path) -> None:
    found = measured(folder)
    good, bad = found["good/own/0/a"], found["bad/own/1/a"]
    assert good["psnr"] == 100.0
    assert good["background_leak"] == 0.0
    assert bad["psnr"] < 10
    assert bad["delta_e"] > 50
    assert good["line_f1"] > 0.8
    (folder / "manifest.csv").unlink()
    line = {"sketch": "sketch.png", "reference": "truth.png", "result": "right.png"}
    (folder / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    (only,) = measured(folder).items()
    assert only[0] == f"model/{AS_GIVEN}/0/sketch.png"
    assert set(only[1]) == {"line_f1", "line_distance_score", "palette_to_reference"}


def test_pictures_come_to_the_results_size(folder: Path) -> None:
    task = manifest_tasks(read_entries(folder))[1]
    (order,) = ManifestSource(folder).orders(task)
    assert order.sample.sketch.shape == (32, 32)
    assert order.sample.image is not None
    assert order.sample.image.shape == (32, 32, 3)
    assert order.reference.image.shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gone.png,truth.png,right.png,,,,own,,", "entry 1: sketch: gone.png: no such file"),
        ("sketch.png,,right.png,,,,own,,", "entry 1: reference: Field required"),
        ("sketch.png,truth.png,right.png,,,,best,,", "protocol 'best'; allowed: own, same_palette"),
    ],
)
def test_faults_name_file_and_entry(folder: Path, line: str, message: str) -> None:
    (folder / "manifest.csv").write_text(HEADER + line + "\n")
    with pytest.raises(ResultsError, match=message):
        read_entries(folder)


def test_a_folder_without_results_says_so(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.csv").write_text(HEADER)
    with pytest.raises(ResultsError, match="lists no results"):
        read_entries(folder)
    (folder / "manifest.csv").write_text(HEADER.replace(",id", ",name") + "a,b,c,,,,,d,\n")
    with pytest.raises(ResultsError, match="name: Extra inputs"):
        read_entries(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultsError, match="there is no manifest.csv or manifest.jsonl"):
        read_entries(tmp_path / "empty")


def test_a_truth_of_another_shape_is_refused(folder: Path) -> None:
    Image.new("RGB", (64, 32)).save(folder / "truth.png")
    with pytest.raises(ResultsError, match="64 x 32 has another shape"):
        measured(folder)
