"""A run tells from which commit, packages and settings it was made."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

import nurie
from nurie.tracking.origin import installed_packages, source_commit, write_origin


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=n", "-c", "user.email=n@n", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    source = folder / "__init__.py"
    source.write_text("")
    git(folder, "init", "-q", "-b", "trunk")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    monkeypatch.setattr(nurie, "__file__", str(source))
    return folder


def test_changed_files_make_a_commit_dirty(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    assert source_commit() == (commit, "trunk", False)
    (repository / "untracked.txt").write_text("x")
    assert source_commit() == (commit, "trunk", False)
    (repository / "__init__.py").write_text("changed")
    assert source_commit() == (commit, "trunk", True)
    git(repository, "checkout", "-q", "--detach")
    assert source_commit() == (commit, None, True)


def test_outside_of_a_repository_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nurie, "__file__", str(tmp_path / "nurie.py"))
    assert source_commit() == (None, None, None)
    inside = tmp_path / "site-packages" / "nurie" / "__init__.py"
    monkeypatch.setattr(nurie, "__file__", str(inside))
    assert source_commit() == (None, None, None)


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "resolved.yaml").write_text("seed: 0\n")
    origin = write_origin(tmp_path)
    for name, digest in (
        ("packages.txt", origin.lock_sha256),
        ("resolved.yaml", origin.config_sha256),
    ):
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert json.loads((tmp_path / "origin.json").read_text())["lock_sha256"] == origin.lock_sha256
    packages = installed_packages().splitlines()
    assert packages == sorted(packages)
    assert any(line.startswith("torch==") for line in packages)
    assert not any(line.startswith("nurie==") for line in packages)
