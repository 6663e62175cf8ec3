"""A checkpoint folder is loaded only when it is exactly what was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nurie.checkpoints.manifest import (
    MANIFEST_NAME,
    CheckpointError,
    manifest_digest,
    publish_folder,
    verify_manifest,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    (model / "unet").mkdir(parents=True)
    (model / "model_index.json").write_text("{}")
    (model / "unet" / "weights.safetensors").write_bytes(b"0123456789")
    write_manifest(model)
    return model


def test_intact_folder_passes_and_its_digest_names_it(folder: Path) -> None:
    digest = verify_manifest(folder)
    assert digest == manifest_digest(folder) == write_manifest(folder)
    listed = json.loads((folder / MANIFEST_NAME).read_text())["files"]
    assert list(listed) == ["model_index.json", "unet/weights.safetensors"]
    assert listed["model_index.json"] == {
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size": 2,
    }


def test_other_content_has_another_digest(folder: Path) -> None:
    before = manifest_digest(folder)
    (folder / "model_index.json").write_text("[]")
    assert write_manifest(folder) != before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "unet/weights.safetensors").unlink(), "weights.safetensors: missing"),
        (
            lambda f: (f / "unet/weights.safetensors").write_bytes(b"012345678"),
            "weights.safetensors: has 9 bytes instead of 10",
        ),
        (
            lambda f: (f / "unet/weights.safetensors").write_bytes(b"0123456780"),
            "weights.safetensors: the content has changed",
        ),
        (
            lambda f: (f / "unet/more.safetensors").write_bytes(b"x"),
            "more.safetensors: .*not listed",
        ),
        (lambda f: (f / "unet/pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin: pickle"),
        (lambda f: (f / MANIFEST_NAME).unlink(), "MANIFEST.json: missing"),
        (lambda f: (f / MANIFEST_NAME).write_text('{"format": "nur'), "no readable manifest"),
        (
            lambda f: (f / MANIFEST_NAME).write_text('{"format": "x", "files": {}}'),
            "the format must be",
        ),
        (
            lambda f: (f / MANIFEST_NAME).write_text(
                '{"format": "nurie-manifest/1", "files": {"../../etc/passwd": {}}}'
            ),
            "outside of the folder|not listed",
        ),
    ],
)
def test_damage_is_named(folder: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        verify_manifest(folder)


def test_listed_pickles_need_permission(folder: Path) -> None:
    (folder / "engine.pt").write_bytes(b"state")
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=r"engine\.pt: pickle"):
        verify_manifest(folder)
    verify_manifest(folder, allow_pickles=True)
    (folder / "other.pt").write_bytes(b"smuggled in")
    with pytest.raises(CheckpointError, match=r"other\.pt: pickle"):
        verify_manifest(folder, allow_pickles=True)


def test_manifest_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no files"):
        write_manifest(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        write_manifest(tmp_path / "absent")


def test_publishing_moves_once_and_replaces_only_when_told(folder: Path, tmp_path: Path) -> None:
    final = tmp_path / "published" / "model"
    publish_folder(folder, final)
    assert not folder.exists()
    first = verify_manifest(final)

    again = tmp_path / "again"
    again.mkdir()
    (again / "file").write_text("new")
    write_manifest(again)
    with pytest.raises(CheckpointError, match="already exists"):
        publish_folder(again, final)
    assert manifest_digest(final) == first

    publish_folder(again, final, replace=True)
    assert verify_manifest(final) != first
    assert [path.name for path in final.parent.iterdir()] == ["model"]
