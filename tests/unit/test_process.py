"""The forward process and its targets."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from nurie.config.model import DiffusionConfig
from nurie.diffusion.process import (
    add_noise,
    alphas_cumprod,
    min_snr_weight,
    offset_noise,
    velocity,
)


def test_schedule_equals_diffusers() -> None:
    config = DiffusionConfig()
    scheduler = DDPMScheduler(
        beta_start=config.beta_start, beta_end=config.beta_end, beta_schedule="scaled_linear"
    )
    ours = alphas_cumprod(config).float()
    torch.testing.assert_close(ours, scheduler.alphas_cumprod, rtol=1e-5, atol=1e-7)


def test_signal_falls_strictly() -> None:
    assert (alphas_cumprod(DiffusionConfig()).diff() < 0).all()


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_start() -> None:
    plain = alphas_cumprod(DiffusionConfig())
    rescaled = alphas_cumprod(DiffusionConfig(rescale_betas_zero_snr=True))
    assert rescaled[-1] == pytest.approx(0, abs=1e-12)
    assert rescaled[0] == pytest.approx(plain[0].item())


def test_v_prediction_gives_back_latents_and_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 4, 5, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(3, 4, 5, 6, generator=generator, dtype=torch.float64)
    alphas = torch.tensor([0.9, 0.5, 0.01], dtype=torch.float64)
    noisy, v = add_noise(latents, noise, alphas), velocity(latents, noise, alphas)
    root, rest = alphas.sqrt().view(-1, 1, 1, 1), (1 - alphas).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(root * noisy - rest * v, latents)
    torch.testing.assert_close(rest * noisy + root * v, noise)


def test_noise_offset_shifts_whole_channels() -> None:
    shape = torch.Size((64, 4, 16, 16))
    means = [
        offset_noise(shape, strength, torch.Generator().manual_seed(1)).mean((2, 3)).std().item()
        for strength in (0.0, 0.5)
    ]
    assert means[0] == pytest.approx(1 / 16, rel=0.15)
    assert means[1] == pytest.approx((0.25 + 1 / 256) ** 0.5, rel=0.15)


def test_min_snr_weight_is_capped_and_continuous() -> None:
    alphas = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    weight = min_snr_weight(alphas, gamma=5.0)
    snr = alphas / (1 - alphas)
    torch.testing.assert_close(weight[snr < 5], alphas[snr < 5])
    assert (weight[snr > 5].diff() < 0).all()
