"""Checkpoints under faults: a writer killed at any moment, damaged files, a full disk."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nurie.config.train import BackboneStage, EngineConfig
from nurie.training.stages import build_stage
from nurie_pipelines.train.checkpoints import CheckpointStore, StageState
from nurie_pipelines.train.engines import Engine, build_engine
from tests.tiny import tiny_model

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def engine() -> Engine:
    stage = build_stage(tiny_model(), BackboneStage(steps=9), lambda pixels: pixels)
    return build_engine(stage, EngineConfig(kind="torch", num_workers=1), 1)


def save(folder: Path, engine: Engine, step: int, keep: int = 2) -> bool:
    return CheckpointStore(folder, keep).save(StageState("backbone", step, 1), engine, None)


def in_a_child(body: Callable[[], None]) -> int:
    """Runs a function in a forked process; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            body()
        finally:
            os._exit(0)
    return child


def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(
    engine: Engine, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    assert save(tmp_path, engine, 1)
    start = time.monotonic()
    assert save(tmp_path, engine, 2)
    seconds = time.monotonic() - start
    chance = random.Random(0)
    step = 2

    def write_for_ever() -> None:
        for number in range(step + 1, step + 1000):
            save(tmp_path, engine, number)

    kills = 8 * int(os.environ.get("NURIE_REPEATS", "1"))
    for _ in range(kills):
        child = in_a_child(write_for_ever)
        time.sleep(2 * seconds * chance.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        newest = CheckpointStore(tmp_path, 2).newest()
        assert newest is not None and newest[1].step >= step
        assert CheckpointStore(tmp_path, 2).restore(engine, None) == newest[1]
        step = newest[1].step
    assert save(tmp_path, engine, step + 1)
    record_property("writers killed", kills)
    assert not list(tmp_path.glob(".partial-*"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path: Path) -> None:
    path.write_text(json.dumps({"stage": "backbone", "epoch": 3}))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state/rank-00000.safetensors", flip),
        ("state/rank-00000.safetensors", truncate),
        ("state/rank-00000.safetensors", lambda path: path.write_bytes(b"")),
        ("state/rank-00000.safetensors", Path.unlink),
        ("state.json", foreign),
        ("MANIFEST.json", truncate),
        ("MANIFEST.json", Path.unlink),
    ],
)
def test_damage_is_named_and_the_one_before_is_used(
    engine: Engine, tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    assert save(tmp_path, engine, 1)
    assert save(tmp_path, engine, 2)
    damage(tmp_path / "step-000002" / name)
    said: list[str] = []
    newest = CheckpointStore(tmp_path, 2, say=said.append).newest()
    assert newest is not None and newest[1].step == 1
    assert "step-000002" in said[0]


def test_a_full_disk_costs_a_checkpoint_and_nothing_else(engine: Engine, tmp_path: Path) -> None:
    """A child may write small files only: the same error as of a full disk, in mid-file."""
    assert save(tmp_path, engine, 1)
    before = [p.name for p in sorted(tmp_path.iterdir())]

    def write_too_much() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        (tmp_path / "said").write_text(f"{save(tmp_path, engine, 2)}")

    os.waitpid(in_a_child(write_too_much), 0)
    assert (tmp_path / "said").read_text() == "False"
    (tmp_path / "said").unlink()
    assert [p.name for p in sorted(tmp_path.iterdir())] == before
    assert CheckpointStore(tmp_path, 2).restore(engine, None) == StageState(
        "backbone", 1, 1, counters=engine.counters()
    )
    assert save(tmp_path, engine, 3)


def test_too_little_space_is_seen_before_anything_is_written(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert save(tmp_path, engine, 1, keep=1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    said: list[str] = []
    store = CheckpointStore(tmp_path, 1, say=said.append)
    assert not store.save(StageState("backbone", 2, 1), engine, None)
    assert "0.0 GiB are free" in said[0]
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_the_best_stay_beside_the_newest(engine: Engine, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 2, keep_best=2)
    kept = []
    for step, loss in enumerate((0.9, 0.2, 0.5, float("nan"), 0.1, 0.3, 0.7), 1):
        assert store.save(StageState("backbone", step, 1), engine, None)
        store.note_loss(step, loss)
        kept.append([int(folder.name[-1]) for folder in sorted(tmp_path.glob("step-*"))])
    assert kept[3:] == [[2, 3, 4], [2, 3, 4, 5], [2, 5, 6], [2, 5, 6, 7]]
    newest = store.newest()
    assert newest is not None
    assert newest[1].step == 7


def test_restoring_gives_the_weights_back(engine: Engine, tmp_path: Path) -> None:
    before = {f.name: f.values.clone() for f in engine.fragments()}
    assert save(tmp_path, engine, 1)
    with torch.no_grad():
        for _, parameter in engine.stage.trained_parameters():
            parameter.zero_()
    CheckpointStore(tmp_path, 1).restore(engine, None)
    assert all(torch.equal(f.values, before[f.name]) for f in engine.fragments())
