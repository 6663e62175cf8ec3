"""Reading rows of a data set at random places, and writing a shard whole."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nurie.data import shards
from nurie.data.manifest import Manifest, ManifestError, ShardEntry, read_manifest, write_manifest
from nurie.data.schema import RENDERED_SCHEMA, SAMPLE_SCHEMA, SCHEMA_VERSION
from nurie.data.shards import ShardReader
from nurie_pipelines.data.latents import append_latents
from nurie_pipelines.data.write import SHARD_COLUMN, stored_latent_channels, write_shard

ROWS = (40, 7)
LATENTS = (2, 3, 3)


def rendered_rows(file: str, start: int, count: int) -> pa.Table:
    rows = [
        {
            "sample_id": f"s{start + i}",
            "source": "characters",
            "character_id": f"c{i}",
            "palette_id": f"p{i}",
            "group_id": f"c{i}",
            "split": "train",
            "roles": ["background", "hair"],
            "palette": "{}",
            "tags": ["solo"],
            "mismatched_ids": ["s0"],
            "mismatched_rows": [0],
            "same_palette_ids": [],
            "same_palette_rows": [],
            "width": 8,
            "height": 8,
            "bucket": "8x8",
            "original_area": 64,
            "aesthetic_score": 7.0,
            "image": os.urandom(300),
            "sketches": [b"a", b"b"],
            "sketch_styles": ["ink", "xdog"],
            "mask": b"m",
            "labels": None,
        }
        for i in range(count)
    ]
    table = pa.Table.from_pylist(rows, schema=RENDERED_SCHEMA)
    return table.append_column(SHARD_COLUMN, pa.array([file] * count))


def with_latents(rows: pa.Table, start: int) -> pa.Table:
    latents = [np.full(LATENTS, start + i, np.float16).tobytes() for i in range(rows.num_rows)]
    return append_latents(rows, latents, LATENTS)


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    entries, start = [], 0
    for number, count in enumerate(ROWS):
        rows = with_latents(rendered_rows(f"train-{number:05d}.parquet", start, count), start)
        done = write_shard(rows, tmp_path, "build").to_pylist()[0]
        entries.append(ShardEntry(split="train", bucket="8x8", rows=count, **done))
        start += count
    manifest = Manifest(
        name="t",
        created_by="test",
        config={},
        inputs={},
        counts={"train": start},
        image_size=8,
        sketch_styles=("ink", "xdog"),
        roles=("background", "hair"),
        latent_channels=LATENTS[0],
        mismatch_rounds=1,
        shards=tuple(entries),
    )
    write_manifest(tmp_path, manifest)
    return tmp_path


def test_rows_come_back_in_the_asked_order(data_set):
    reader = ShardReader(data_set, "train")
    assert len(reader) == sum(ROWS)
    wanted = [46, 0, 39, 40, 15, 16, 0]
    rows = reader.read(wanted, ["sample_id", "latents"])
    assert [row["sample_id"] for row in rows] == [f"s{i}" for i in wanted]
    values = [np.frombuffer(row["latents"], np.float16)[0] for row in rows]
    assert values == wanted
    assert all(reader.row_of[f"s{i}"] == i for i in range(len(reader)))
    assert reader.index.num_rows == len(reader)


def test_cache_stays_within_its_budget(data_set):
    reader = ShardReader(data_set, "train", cache_bytes=8000)
    for index in (*range(len(reader)), *range(len(reader))):
        reader.read([index], ["sample_id", "image"])
        held = sum(table.nbytes for table in reader._cache.values())
        assert held == reader._cached_bytes
        assert held <= 8000 or len(reader._cache) == 1


def test_few_shards_stay_open(data_set, monkeypatch):
    reader = ShardReader(data_set, "train")
    expected = reader.read(range(len(reader)), ["sample_id", "image"])
    assert len(reader._open_shards) == len(ROWS)
    monkeypatch.setattr(shards, "FOOTER_CACHE_BYTES", 1)
    for cache_bytes in (1, 2**20):  # rows that are cached outlive their file
        reader = ShardReader(data_set, "train", cache_bytes)
        for index in (0, 46, 1, 45, 1):
            assert reader.read([index], ["sample_id", "image"]) == [expected[index]]
            assert len(reader._open_shards) == 1


def test_a_data_set_at_an_address_reads_the_same(data_set):
    rows = ShardReader(data_set, "train").read(range(sum(ROWS)), ["sample_id", "image"])
    memory = fsspec.filesystem("memory")
    memory.put(str(data_set), "/sets/", recursive=True)
    (place,) = memory.ls("/sets", detail=False)
    for address in (data_set.as_uri(), f"memory:/{place}"):
        reader = ShardReader(address, "train")
        assert reader.read(range(sum(ROWS)), ["sample_id", "image"]) == rows
        assert reader.column("sample_id") == [row["sample_id"] for row in rows]
        assert read_manifest(address, verify=True) == reader.manifest
    memory.rm("/sets", recursive=True)


@pytest.mark.parametrize("index", [-1, 47])
def test_rows_outside_are_refused(data_set, index):
    with pytest.raises(IndexError, match=str(index)):
        ShardReader(data_set, "train").read([index], ["sample_id"])


def test_missing_split_is_named(data_set):
    with pytest.raises(ManifestError, match=r"'test'.*train"):
        ShardReader(data_set, "test")


def test_same_rows_give_the_same_bytes(tmp_path):
    rows = with_latents(rendered_rows("train-00000.parquet", 0, 5), 0)
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        digests.append(write_shard(rows, tmp_path / name, "x")["sha256"][0].as_py())
    assert digests[0] == digests[1]


def test_failed_write_leaves_no_shard(tmp_path, monkeypatch):
    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    rows = with_latents(rendered_rows("train-00000.parquet", 0, 5), 0)
    with pytest.raises(OSError, match="No space"):
        write_shard(rows, tmp_path, "x")
    assert [file.name for file in tmp_path.iterdir() if not file.name.endswith(".part")] == []


def test_stored_file_carries_the_schema(data_set):
    shard = data_set / "train-00000.parquet"
    assert pq.read_schema(shard).equals(SAMPLE_SCHEMA, check_metadata=False)
    assert pq.read_schema(shard).metadata[b"nurie.schema_version"] == SCHEMA_VERSION.encode()
    assert stored_latent_channels(data_set, shard.name) == LATENTS[0]
