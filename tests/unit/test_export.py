"""What is exported can be read back as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nurie.config.data import PicturesSource
from nurie.data.manifest import Manifest, ShardEntry, file_sha256, write_manifest
from nurie.data.pixels import decode_pixels, encode_pixels
from nurie.data.png import decode_png
from nurie.data.schema import SAMPLE_SCHEMA
from nurie_pipelines.data import export
from nurie_pipelines.data.collections import iterate, list_items
from nurie_pipelines.data.collections.storage import read_bytes
from nurie_pipelines.data.export import export_dataset

COUNTS = {"train": 5, "test": 2}


def sample(split: str, number: int) -> dict:
    rng = np.random.default_rng([number, len(split)])
    picture = rng.integers(0, 256, (8, 8, 3), np.uint8)
    empty = dict.fromkeys(SAMPLE_SCHEMA.names)
    return empty | {
        "sample_id": f"{split}/{number}",
        "split": split,
        "tags": ["hat", str(number)],
        "width": 8,
        "height": 8,
        "aesthetic_score": 7.0,
        "image": encode_pixels(picture),
        "sketches": [encode_pixels(picture[..., 0]), encode_pixels(picture[..., 1])],
        "mask": encode_pixels(picture[..., 2]),
    }


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    shards = []
    schema = pa.schema([field.with_nullable(True) for field in SAMPLE_SCHEMA])
    for split, count in COUNTS.items():
        file = f"{split}-00000.parquet"
        rows = [sample(split, number) for number in range(count)]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / file)
        digest = file_sha256(folder / file)
        shards.append(ShardEntry(file=file, split=split, bucket="32x32", rows=count, sha256=digest))
    manifest = Manifest(
        name="test",
        created_by="test",
        config={},
        inputs={},
        counts=COUNTS,
        image_size=8,
        sketch_styles=("a", "b"),
        roles=(),
        latent_channels=None,
        mismatch_rounds=1,
        shards=tuple(shards),
    )
    write_manifest(folder, manifest)
    return folder


@pytest.mark.parametrize("layout", ["webdataset", "colorizediffusion"])
def test_round_trip(dataset, tmp_path, monkeypatch, layout):
    monkeypatch.setattr(export, "SAMPLES_PER_ARCHIVE", 3)
    output = tmp_path / "out"
    paths = export_dataset(dataset, output, layout)
    assert all(path.is_file() for path in paths)
    assert not list(output.rglob("*.part"))
    items = list(iterate(list_items(PicturesSource(kind=layout, path=str(output)))))
    expected = {row["tags"][1] + row["split"]: row for row in _samples()}
    assert len(items) == len(expected) == 7
    found = set()
    for item in items:
        assert not item.problem and item.sketch and item.mask
        image, sketch, mask = (
            decode_png(read_bytes(str(output), locator), channels)
            for locator, channels in ((item.picture, 3), (item.sketch, 1), (item.mask, 1))
        )
        (match,) = [
            row for row in expected.values() if np.array_equal(decode_pixels(row["image"]), image)
        ]
        assert np.array_equal(sketch, decode_pixels(match["sketches"][0]))
        assert np.array_equal(mask, decode_pixels(match["mask"]))
        assert list(item.tags) == match["tags"]
        found.add(match["sample_id"])
    assert len(found) == 7


def test_a_folder_with_something_in_it_is_refused(dataset, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(ValueError, match="is not empty"):
        export_dataset(dataset, tmp_path / "out", "webdataset")


def _samples() -> list[dict]:
    return [sample(split, number) for split, count in COUNTS.items() for number in range(count)]
