"""Weights from elsewhere: released checkpoints and stock SDXL, streamed tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nurie.checkpoints import stream
from nurie.checkpoints.manifest import CheckpointError, verify_manifest
from nurie.checkpoints.transfer import convert_released, empty_parts, start_from_sdxl
from nurie.config.loader import load_config
from nurie.config.model import ModelConfig
from nurie.inference.folder import complete_folder
from nurie.inference.pipeline import ColorizationPipeline
from nurie_cli.main import main
from tests.released import released_names
from tests.tiny import CONFIGS, tiny_components, tiny_config, tiny_model

WEIGHTS = "diffusion_pytorch_model.safetensors"


def released_checkpoint(path: Path) -> tuple[Path, dict[str, dict[str, torch.Tensor]]]:
    """A tiny model as a released file, and its tensors by component."""
    model = tiny_model(adapters=False)
    model.add_foreground_adapter()
    parts = model.parts()
    layers = tiny_config().unet.layers_per_block
    tensors: dict[str, torch.Tensor] = {"first_stage_model.x": torch.zeros(1)}
    for component, prefix in (
        ("unet", "model.diffusion_model."),
        ("foreground_adapter", "fg_encoder."),
    ):
        state = parts[component].state_dict()
        names = released_names(parts[component], prefix, layers)
        injected = {n for n in state if n.startswith("injection.")}
        assert set(names) == set(state) - injected
        tensors |= {names[n]: state[n].clone() for n in names}
        for n in injected:
            map_name = n.replace("injection.layers.", "model.diffusion_model.map_modules.")
            tensors[map_name] = state[n].clone()
    for component, prefix in (
        ("sketch_encoder", "control_encoder."),
        ("reference_projection", "proj."),
    ):
        for n, value in parts[component].state_dict().items():
            tensors[prefix + n.replace("stem.", "model.", 1)] = value.clone()
    save_file(tensors, path)
    return path, {name: part.state_dict() for name, part in parts.items()}


def test_a_released_checkpoint_becomes_a_model_folder(tmp_path: Path) -> None:
    source, expected = released_checkpoint(tmp_path / "released.safetensors")
    output = tmp_path / "model"
    reports = convert_released(source, tiny_config(), output, torch.float32)
    assert reports["other"].unused == ["first_stage_model.x"]
    assert set(reports) == {*expected, "other"}
    for name, tensors in expected.items():
        got = load_file(output / name / WEIGHTS)
        assert got.keys() == tensors.keys()
        assert all(torch.equal(got[key], tensors[key]) for key in got)
    complete_folder(output, tiny_components(tmp_path / "frozen"), tiny_config())
    pipeline = ColorizationPipeline.from_pretrained(output)
    assert pipeline.foreground_adapter is not None and pipeline.background_encoder is None


def test_files_are_mapped_anew_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a whole checkpoint would stay in memory while it is converted."""
    source, expected = released_checkpoint(tmp_path / "released.safetensors")
    opened: list[Path] = []
    real = stream._open_safetensors
    monkeypatch.setattr(stream, "_open_safetensors", lambda f: [opened.append(f), real(f)][1])
    monkeypatch.setattr(stream, "_MAX_MAPPED_BYTES", 100_000)
    convert_released(source, tiny_config(), tmp_path / "model", torch.float32)
    assert len(opened) > 5
    got = load_file(tmp_path / "model" / "unet" / WEIGHTS)
    assert all(torch.equal(got[key], value) for key, value in expected["unet"].items())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("nan", r"input_blocks\.0\.0\.weight holds values that are not finite"),
        ("shape", r"input_blocks\.0\.0\.weight: \(1, 2\), wanted"),
        ("missing", r"tensors of unet do not fit.*missing"),
        ("none", "no tensors of unet"),
    ],
)
def test_damaged_checkpoints_are_named(tmp_path: Path, damage: str, message: str) -> None:
    source, _ = released_checkpoint(tmp_path / "released.safetensors")
    tensors = load_file(source)
    name = "model.diffusion_model.input_blocks.0.0.weight"
    if damage == "nan":
        tensors[name][0, 0, 0, 0] = float("nan")
    elif damage == "shape":
        tensors[name] = torch.zeros(1, 2)
    elif damage == "missing":
        del tensors[name]
    else:
        tensors = {key: value for key, value in tensors.items() if "diffusion_model" not in key}
    save_file(tensors, source)
    with pytest.raises(CheckpointError, match=message):
        convert_released(source, tiny_config(), tmp_path / "model")
    assert not list(tmp_path.glob("model/unet/*.safetensors"))


def test_pickles_are_read_only_when_asked(tmp_path: Path) -> None:
    source, expected = released_checkpoint(tmp_path / "released.safetensors")
    pickle = tmp_path / "released.ckpt"
    torch.save({"state_dict": load_file(source)}, pickle)
    with pytest.raises(CheckpointError, match="is a pickle"):
        convert_released(pickle, tiny_config(), tmp_path / "model")
    convert_released(pickle, tiny_config(), tmp_path / "model", torch.float32, allow_pickle=True)
    got = load_file(tmp_path / "model" / "unet" / WEIGHTS)
    assert all(torch.equal(got[key], value) for key, value in expected["unet"].items())


@pytest.mark.parametrize("form", ["folder", "single file"])
def test_a_stock_unet_gives_what_fits(tmp_path: Path, form: str) -> None:
    unet = tiny_model().unet
    state = {name: value.clone() for name, value in unet.state_dict().items()}
    # What a stock U-Net has otherwise: another added embedding, pointwise convolutions.
    key = "class_embedding.linear_1.weight"
    state[key] = torch.ones(state[key].shape[0], 7)
    projection = next(name for name in state if name.endswith("proj_in.weight"))
    state[projection] = state[projection][..., None, None]
    if form == "folder":
        (tmp_path / "base" / "unet").mkdir(parents=True)
        save_file(state, tmp_path / "base" / "unet" / WEIGHTS)
        base = tmp_path / "base"
    else:
        base = tmp_path / "base.safetensors"
        prefix = "model.diffusion_model."
        names = released_names(unet, prefix, tiny_config().unet.layers_per_block)
        save_file({names[name]: value for name, value in state.items()}, base)
    output = tmp_path / "start"
    reports = start_from_sdxl(base, tiny_config(), output)
    assert reports["unet"].fresh == [key] and reports["unet"].reshaped == [projection]
    got = load_file(output / "unet" / WEIGHTS)
    assert got[key].std() > 0
    for name, value in unet.state_dict().items():
        assert name == key or torch.equal(got[name], value), name
    from nurie.models.colorizer import ColorizationModel

    ColorizationModel(tiny_config()).load(output)


def test_the_command_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, _ = released_checkpoint(tmp_path / "released.safetensors")
    frozen, output = tiny_components(tmp_path / "frozen"), tmp_path / "model"
    words = ["models", "convert", str(source), "-o", str(output), "--components", str(frozen)]
    assert main([*words, "--preset", str(CONFIGS / "model" / "tiny.yaml")]) == 0
    assert "a complete model folder" in capsys.readouterr().out
    verify_manifest(output)
    assert main([*words, "--preset", str(CONFIGS / "model" / "nano.yaml")]) != 0
    assert "do not fit the preset" in capsys.readouterr().err


def test_nothing_of_another_model_is_taken(tmp_path: Path) -> None:
    save_file({"decoder.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="none of its tensors fits"):
        start_from_sdxl(tmp_path / "other.safetensors", tiny_config(), tmp_path / "start")


def test_parts_of_the_papers_size() -> None:
    """Millions of parameters of every part, none of them in memory."""
    config = load_config(CONFIGS / "model" / "sdxl.yaml")
    assert isinstance(config, ModelConfig)
    parts = empty_parts(config)
    assert all(p.is_meta for part in parts.values() for p in part.parameters())
    millions = {n: sum(p.numel() for p in m.parameters()) / 1e6 for n, m in parts.items()}
    # The denoiser is SDXL's (2567 M) with a smaller added embedding.
    assert {name: round(value, 1) for name, value in millions.items()} == {
        "unet": 2564.5,
        "sketch_encoder": 26.0,
        "reference_projection": 15.5,
        "foreground_adapter": 672.7,
        "background_encoder": 2004.5,
    }
