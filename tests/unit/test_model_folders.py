"""Components as folders: what is saved comes back, what does not belong is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from nurie.models.colorizer import ColorizationModel, use_lora
from nurie.models.conditioning import Conditioning
from tests.tiny import normal, randomise, tiny_config, tiny_model

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[ColorizationModel, Path]:
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model(adapters=True)
    model.save(folder)
    return model, folder


def test_everything_comes_back(saved: tuple[ColorizationModel, Path]) -> None:
    model, folder = saved
    loaded = ColorizationModel(tiny_config())
    loaded.load(folder)
    expected, got = model.state_dict(), loaded.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_the_unet_is_a_plain_diffusers_unet(saved: tuple[ColorizationModel, Path]) -> None:
    model, folder = saved
    plain = UNet2DConditionModel.from_pretrained(folder / "unet")
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
    weight = model.unet.get_submodule(key).base_layer.weight
    assert torch.equal(plain.get_submodule(key).weight, weight)


def test_half_precision_files_are_half_as_large(
    saved: tuple[ColorizationModel, Path], tmp_path: Path
) -> None:
    model, folder = saved
    model.save(tmp_path, torch.float16)
    sizes = [(f / "unet" / WEIGHTS).stat().st_size for f in (folder, tmp_path)]
    assert sizes[1] < 0.6 * sizes[0]


def test_lora_acts_only_while_it_is_used(saved: tuple[ColorizationModel, Path]) -> None:
    model, _ = saved
    plain = ColorizationModel(tiny_config())
    randomise(plain, seed=1)
    state = {k.replace(".base_layer", ""): v for k, v in model.unet.state_dict().items()}
    plain.unet.load_state_dict({k: v for k, v in state.items() if ".lora_" not in k})
    conditioning = Conditioning(normal(1, 16), None, normal(1, 16, 32))
    latents, timesteps = normal(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        expected = plain.unet(latents, timesteps, conditioning).sample
        with use_lora(model.unet, active=False):
            off = model.unet(latents, timesteps, conditioning).sample
        on = model.unet(latents, timesteps, conditioning).sample
    torch.testing.assert_close(off, expected, rtol=1e-5, atol=1e-5)
    assert (on - expected).abs().max() > 1e-3


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_weights_of_another_model_are_refused(
    saved: tuple[ColorizationModel, Path], tmp_path: Path, fault: str
) -> None:
    model, _ = saved
    model.save(tmp_path)
    path = tmp_path / "sketch_encoder" / WEIGHTS
    tensors = load_file(path)
    if fault == "missing":
        tensors.pop("stem.0.weight")
    elif fault == "unknown":
        tensors["surprise"] = torch.zeros(1)
    else:
        tensors["stem.0.weight"] = torch.zeros(1, 3, 3, 3)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"sketch_encoder.*(stem\.0\.weight|surprise)"):
        ColorizationModel(tiny_config()).load(tmp_path)
