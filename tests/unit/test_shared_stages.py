"""Stages that variants have in common: found, taken over, and truly the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nurie.checkpoints.manifest import CheckpointError
from nurie.config.evaluate import AblationsConfig
from nurie.config.loader import load_config, read_yaml
from nurie.config.train import TrainConfig
from nurie_pipelines.evaluate.ablation_runs import plan_runs
from nurie_pipelines.evaluate.shared import stage_identity, take_over
from nurie_pipelines.train.checkpoints import CheckpointStore, StageState
from nurie_pipelines.train.engines import build_engine
from nurie_pipelines.train.export import export_checkpoint
from nurie_pipelines.train.job import StageJob
from nurie_pipelines.train.worker import make_stage
from tests.tiny import CONFIGS, tiny_components

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, TrainConfig]:
    """Variants of a tiny training, by name; plain torch, one worker."""
    monkeypatch.chdir(ROOT)
    tiny_components(tmp_path / "components")
    settings = {
        "model": read_yaml(CONFIGS / "model" / "tiny.yaml"),
        "components": str(tmp_path / "components"),
        "engine": {"kind": "torch", "num_workers": 1},
    }
    loaded = load_config(
        "configs/eval/ablations-nano.yaml",
        {"output": str(tmp_path / "runs"), "seeds": [3], "settings": settings},
    )
    assert isinstance(loaded, AblationsConfig)
    return {run.variant: run.train for run in plan_runs(loaded)}


def train_in_name_only(config: TrainConfig, index: int, start: Path | None) -> Path:
    """A stage that ends where it begins: its start weights as its last checkpoint and model."""
    stage = config.stages[index]
    job = StageJob(config, index, start, config.output / stage.kind)
    engine = build_engine(make_stage(job, torch.device("cpu")), config.engine, 1)
    store = CheckpointStore(job.folder / "checkpoints", 2)
    assert store.save(StageState(stage.kind, stage.steps, 1), engine, None)
    (job.folder / "metrics.jsonl").write_text('{"step": 1}\n')
    newest = store.newest()
    assert newest is not None
    export_checkpoint(newest[0], config.model, start, job.folder / "model")
    return job.folder / "model"


def test_which_stages_are_the_same(runs: dict[str, TrainConfig]) -> None:
    full = [stage_identity(runs["full"], index) for index in range(3)]
    same = {
        "no_foreground": [0, 2],  # Places in `full` of its stages; None: another training.
        "no_background": [0, 1],
        "no_gram": [None, None, None],
        "batch_roll": [None, None, None],
        "no_tagger": [None, None, None],
    }
    for name, places in same.items():
        own = [stage_identity(runs[name], i) for i in range(len(runs[name].stages))]
        assert [full.index(each) if each in full else None for each in own] == places
    other_seed = runs["full"].model_copy(update={"seed": 4})
    assert stage_identity(other_seed, 0) != full[0]


def test_a_shared_stage_begins_and_ends_with_the_same_weights(
    runs: dict[str, TrainConfig],
) -> None:
    """Without the foreground's stage before it, the background's starts from equal weights."""
    start = None
    for index in range(3):
        start = train_in_name_only(runs["full"], index, start)
    taken = take_over(runs["no_foreground"], [runs["no_tagger"], runs["full"]])
    assert taken == {k: runs["full"].output / k for k in ("backbone", "background")}
    shared = runs["no_foreground"].output / "background"
    parts = {path.name for path in (shared / "model").iterdir() if path.is_dir()}
    assert "background_encoder" in parts
    assert "foreground_adapter" not in parts
    assert (shared / "metrics.jsonl").is_file()
    assert take_over(runs["no_foreground"], [runs["full"]]) == {}  # Nothing twice.

    # The same stage, begun by itself.
    alone = runs["no_foreground"].model_copy(update={"output": shared.parent / "alone"})
    first = train_in_name_only(alone, 0, None)
    by_itself = train_in_name_only(alone, 1, first)
    files = sorted((shared / "model").rglob("*.safetensors"))
    assert len(files) >= 4
    for file in files:
        expected = load_file(by_itself / file.relative_to(shared / "model"))
        found = load_file(file)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_what_is_unfinished_or_damaged_is_not_taken(runs: dict[str, TrainConfig]) -> None:
    full, less = runs["full"], runs["no_background"]
    assert take_over(less, [full]) == {}
    model = train_in_name_only(full, 0, None)
    hidden = model.rename(model.with_name("not-yet"))
    assert take_over(less, [full]) == {}
    hidden.rename(model)
    (state,) = (full.output / "backbone/checkpoints").rglob("state.json")
    state.write_text(json.dumps({"stage": "backbone"}))
    with pytest.raises(CheckpointError):
        take_over(less, [full])
