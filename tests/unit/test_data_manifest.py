"""The manifest of a data set and the record of a build."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from nurie.config.data import CharactersSource, DataConfig
from nurie.data.manifest import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    QUARANTINE_SCHEMA,
    Manifest,
    ManifestError,
    ShardEntry,
    file_sha256,
    read_manifest,
    read_quarantine,
    write_manifest,
    write_quarantine,
)
from nurie_pipelines.data.resume import BuildError, BuildRecord, finished_shards, prepare_folder
from nurie_pipelines.data.write import sidecar_name

SHARD = "train-00000.parquet"


def manifest_for(folder: Path) -> Manifest:
    (folder / SHARD).write_bytes(b"rows")
    entry = ShardEntry(
        file=SHARD, split="train", bucket="8x8", rows=1, sha256=file_sha256(folder / SHARD)
    )
    return Manifest(
        name="t",
        created_by="test",
        config={},
        inputs={},
        counts={"train": 1},
        image_size=8,
        sketch_styles=("ink",),
        roles=(),
        latent_channels=None,
        mismatch_rounds=1,
        shards=(entry,),
    )


def record(folder: Path, **changes) -> BuildRecord:
    settings = {"name": "t", "source": CharactersSource(), "output": folder, "seed": 1} | changes
    return BuildRecord.of(DataConfig(**settings), {"source": "abc"})


def test_round_trip_and_verification(tmp_path):
    manifest = manifest_for(tmp_path)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path, verify=True) == manifest
    (tmp_path / SHARD).write_bytes(b"rot!")
    assert read_manifest(tmp_path) == manifest
    with pytest.raises(ManifestError, match=rf"{SHARD}.*damaged"):
        read_manifest(tmp_path, verify=True)
    (tmp_path / SHARD).unlink()
    with pytest.raises(ManifestError, match=rf"{SHARD}.*missing"):
        read_manifest(tmp_path)


def test_unfinished_broken_and_foreign_manifests_are_refused(tmp_path):
    with pytest.raises(ManifestError, match="nurie data build"):
        read_manifest(tmp_path)
    path = tmp_path / MANIFEST_NAME
    path.write_text("{")
    with pytest.raises(ManifestError, match="not a manifest"):
        read_manifest(tmp_path)
    content = manifest_for(tmp_path).model_dump(mode="json") | {"schema_version": "99"}
    path.write_text(json.dumps(content))
    with pytest.raises(ManifestError, match="'99'"):
        read_manifest(tmp_path)


def test_another_build_is_refused_and_named(tmp_path):
    prepare_folder(tmp_path, record(tmp_path), force=False)
    (tmp_path / SHARD).write_bytes(b"rows")
    (tmp_path / "mine.txt").write_text("kept")
    prepare_folder(tmp_path, record(tmp_path, num_cpus=7, name="other"), force=False)
    with pytest.raises(BuildError, match=r"config\.seed: 1 there, 2 here.*--force"):
        prepare_folder(tmp_path, record(tmp_path, seed=2), force=False)
    assert (tmp_path / SHARD).exists()
    prepare_folder(tmp_path, record(tmp_path, seed=2), force=True)
    assert not (tmp_path / SHARD).exists()
    assert (tmp_path / "mine.txt").exists()


def test_shards_without_a_record_are_refused(tmp_path):
    (tmp_path / SHARD).write_bytes(b"rows")
    with pytest.raises(BuildError, match=r"no build\.json"):
        prepare_folder(tmp_path, record(tmp_path), force=False)


@pytest.mark.parametrize("address", [False, True])
def test_only_whole_shards_of_this_build_are_kept(tmp_path, address):
    folder = tmp_path.as_uri() if address else tmp_path
    this = record(tmp_path)
    shard, sidecar = tmp_path / SHARD, tmp_path / sidecar_name(SHARD)
    assert finished_shards(folder, [SHARD], this) == {}
    shard.write_bytes(b"rows")
    assert finished_shards(folder, [SHARD], this) == {}
    digest = file_sha256(shard)
    stored = {"sha256": digest, "bytes": 4, "build": this.digest, "rows": 1}
    sidecar.write_text(json.dumps(stored))
    assert finished_shards(folder, [SHARD, "other.parquet"], this) == {SHARD: digest}
    assert finished_shards(folder, [SHARD], record(tmp_path, seed=2)) == {}
    shard.write_bytes(b"row")
    assert finished_shards(folder, [SHARD], this) == {}


def test_the_list_of_what_was_left_out_has_a_digest(tmp_path):
    assert read_quarantine_of(tmp_path, []) == []
    left_out = [{"file": f"{n}.png", "step": "check", "reason": "too_small: x"} for n in range(3)]
    assert read_quarantine_of(tmp_path, left_out) == left_out
    with open(tmp_path / QUARANTINE_NAME, "ab") as file:
        file.write(b"x")
    with pytest.raises(ManifestError, match=rf"{QUARANTINE_NAME} is damaged"):
        read_manifest(tmp_path, verify=True)


def read_quarantine_of(folder: Path, left_out: list[dict]) -> list[dict]:
    """What is read after this was written."""
    digest = write_quarantine(folder, pa.Table.from_pylist(left_out, schema=QUARANTINE_SCHEMA))
    counts = {"too_small": len(left_out)} if left_out else {}
    stored = {"quarantine": counts, "quarantine_sha256": digest}
    write_manifest(folder, manifest_for(folder).model_copy(update=stored))
    return read_quarantine(folder).to_pylist()
