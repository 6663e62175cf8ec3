"""The autoencoder: normalisation of its latents, and the bundled nano weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from nurie.config.model import ModelConfig, VaeConfig
from nurie.config.train import OptimizerConfig, VaeTrainConfig
from nurie.models.autoencoder import build_vae, decode_latents, encode_latents
from nurie.training import vae as training
from nurie.training.learning_rate import learning_rate
from nurie.training.pictures import PicturePool, held_out_pictures

NANO = Path(__file__).resolve().parents[2] / "assets" / "nano" / "vae"
TINY = VaeConfig(
    block_out_channels=(8, 8),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
    mid_block_add_attention=False,
    scaling_factor=0.25,
)


@pytest.fixture
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return build_vae(TINY).eval().requires_grad_(False)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_plain_scaling_comes_from_the_configuration(vae, pixels):
    raw = vae.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(encode_latents(vae, pixels), raw * 0.25)

    vae.register_to_config(scaling_factor=0.5)
    torch.testing.assert_close(encode_latents(vae, pixels), raw * 0.5)


def test_statistics_normalise_every_channel(vae, pixels):
    raw = vae.encode(pixels).latent_dist.mode()
    mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3))
    vae.register_to_config(scaling_factor=1.0, latents_mean=mean.tolist(), latents_std=std.tolist())

    latents = encode_latents(vae, pixels)

    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("statistics", [False, True])
def test_decoding_undoes_the_normalisation(vae, pixels, statistics):
    if statistics:
        vae.register_to_config(latents_mean=[0.5, -1.0, 2.0, 0.1], latents_std=[0.3, 2.0, 1.5, 0.7])
    raw = vae.encode(pixels).latent_dist.mode()

    result = decode_latents(vae, encode_latents(vae, pixels))

    torch.testing.assert_close(result, vae.decode(raw).sample, atol=1e-5, rtol=1e-4)


def tiny_run(output: Path, **changes: int) -> VaeTrainConfig:
    return VaeTrainConfig(
        model=ModelConfig(name="test", image_size=32, vae=TINY),
        output=output,
        batch_size=2,
        checkpoint_every=2,
        num_threads=1,
        **changes,
    )


def test_training_continues_from_its_newest_state(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "PicturePool", partial(PicturePool, capacity=8))
    steps_done = []

    def interrupted(config: OptimizerConfig, step: int, total: int) -> float:
        steps_done.append(step)
        if steps_done == [0, 1, 2]:
            raise KeyboardInterrupt
        return learning_rate(config, step, total)

    monkeypatch.setattr(training, "learning_rate", interrupted)
    config = tiny_run(tmp_path, steps=4)

    with pytest.raises(KeyboardInterrupt):
        training.train_vae(config)
    folder = training.train_vae(config)

    assert steps_done == [0, 1, 2, 2, 3]
    trained = AutoencoderKL.from_pretrained(folder)
    assert len(trained.config.latents_mean) == len(trained.config.latents_std) == 4
    assert not list(tmp_path.glob(".vae-state*"))


def test_sharpening_the_decoder_keeps_latents_valid(tmp_path, monkeypatch, pixels):
    monkeypatch.setattr(training, "PicturePool", partial(PicturePool, capacity=8))
    before = AutoencoderKL.from_pretrained(training.train_vae(tiny_run(tmp_path, steps=1)))

    training.train_vae(tiny_run(tmp_path, steps=2, freeze_encoder=True))

    after = AutoencoderKL.from_pretrained(tmp_path / "vae")
    with torch.no_grad():
        latents = encode_latents(before, pixels)
        assert torch.equal(encode_latents(after, pixels), latents)
        assert not torch.equal(decode_latents(after, latents), decode_latents(before, latents))


def test_bundled_autoencoder_reconstructs_unseen_characters():
    vae = AutoencoderKL.from_pretrained(NANO)
    pictures = np.stack([p.image for p in held_out_pictures(8, 128, seed=5)])

    assert training.reconstruction_psnr(vae, pictures) > 26

    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = encode_latents(vae, pixels)
    assert latents.shape == (8, 16, 16, 16)
    assert latents.mean().abs() < 0.3
    assert 0.6 < latents.std() < 1.6
