"""A stage's checkpoint becomes a model folder: the same model, in any precision of its pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nurie.checkpoints.manifest import CheckpointError, verify_manifest
from nurie.config.train import (
    BackboneStage,
    BackgroundStage,
    EngineConfig,
    FinetuneStage,
    ForegroundStage,
    StageBase,
)
from nurie.models.colorizer import ADAPTERS, ColorizationModel
from nurie.training.ema import Ema
from nurie.training.stages import TrainingStage, build_stage
from nurie_pipelines.train.checkpoints import CheckpointStore, StageState
from nurie_pipelines.train.engines import build_engine
from nurie_pipelines.train.export import copy_in_half_precision, export_checkpoint
from tests.tiny import normal, randomise, tiny_config, tiny_model


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with all adapters."""
    folder = tmp_path_factory.mktemp("start")
    tiny_model(seed=3, adapters=True).save(folder)
    return folder


def trained(settings: StageBase, start: Path) -> TrainingStage:
    """A stage whose trained parameters have moved."""
    model = ColorizationModel(tiny_config())
    model.load(start, adapters=[settings.adapter] if settings.adapter else [])
    stage = build_stage(model, settings, lambda pixels: pixels)
    with torch.no_grad():
        for number, (_, parameter) in enumerate(stage.trained_parameters()):
            parameter.add_(0.05 * normal(*parameter.shape, seed=number))
    return stage


def checkpoint_of(stage: TrainingStage, folder: Path, *, average: float = 0.0) -> Path:
    engine = build_engine(stage, EngineConfig(kind="torch", num_workers=1), 1)
    ema = Ema(((f.name, f.values) for f in engine.fragments()), average) if average else None
    if ema is not None:
        for values in ema.shadow.values():
            values.add_(1)
    assert CheckpointStore(folder, 1).save(StageState("test", 5, 1), engine, ema)
    return folder / "step-000005"


def weights(model: ColorizationModel) -> dict[str, torch.Tensor]:
    return {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "settings", [BackboneStage(steps=5), ForegroundStage(steps=5), BackgroundStage(steps=5)]
)
def test_what_was_trained_is_new_and_the_rest_is_as_before(
    settings: StageBase, start: Path, tmp_path: Path
) -> None:
    stage = trained(settings, start)
    export_checkpoint(checkpoint_of(stage, tmp_path / "c"), tiny_config(), start, tmp_path / "m")
    verify_manifest(tmp_path / "m")
    before, after = (ColorizationModel(tiny_config()) for _ in range(2))
    before.load(start)
    after.load(tmp_path / "m")
    old, new = weights(before), weights(after)
    moved = {n.replace(".base_layer", ""): p for n, p in stage.trained_parameters()}
    assert set(moved) <= set(new) and old.keys() == new.keys()
    for name, value in new.items():
        assert torch.equal(value, moved.get(name, old[name])), name


def test_the_average_goes_before(start: Path, tmp_path: Path) -> None:
    stage = trained(ForegroundStage(steps=5), start)
    checkpoint = checkpoint_of(stage, tmp_path / "c", average=0.9)
    export_checkpoint(checkpoint, tiny_config(), start, tmp_path / "m")
    model = ColorizationModel(tiny_config())
    model.load(tmp_path / "m")
    new = weights(model)
    for name, parameter in stage.trained_parameters():
        torch.testing.assert_close(new[name], parameter.detach() + 1)


def test_fine_tuning_is_merged_into_the_weights(start: Path, tmp_path: Path) -> None:
    stage = trained(FinetuneStage(steps=5, rank=2), start)
    export_checkpoint(checkpoint_of(stage, tmp_path / "c"), tiny_config(), start, tmp_path / "m")
    model = ColorizationModel(tiny_config())
    model.load(tmp_path / "m", adapters=[])
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    ours, theirs = stage.model.get_submodule(layer), model.get_submodule(layer)
    tokens = normal(2, 5, theirs.in_features)  # type: ignore[arg-type]
    expected = ours(tokens)
    torch.testing.assert_close(theirs(tokens), expected, atol=1e-5, rtol=1e-5)
    before = ColorizationModel(tiny_config())
    before.load(start)
    assert not torch.allclose(before.get_submodule(layer)(tokens), expected, atol=1e-3)
    assert all((tmp_path / "m" / name).is_dir() for name in (*ADAPTERS, "background_lora"))


def test_half_precision_copies_round_every_tensor(start: Path, tmp_path: Path) -> None:
    copy_in_half_precision(start, tiny_config(), tmp_path / "half")
    one, two = (ColorizationModel(tiny_config()) for _ in range(2))
    one.load(start)
    two.load(tmp_path / "half")
    for name, value in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], value.half().float()), name


def test_a_tensor_that_is_nowhere_is_named(tmp_path: Path) -> None:
    model = ColorizationModel(tiny_config())
    randomise(model)
    stage = build_stage(model, FinetuneStage(steps=5, rank=2), lambda pixels: pixels)
    checkpoint = checkpoint_of(stage, tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"unet\..* is in no checkpoint and no start folder"):
        export_checkpoint(checkpoint, tiny_config(), None, tmp_path / "m")
    assert not (tmp_path / "m").exists()
