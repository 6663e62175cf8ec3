"""The forward process and its targets (method section 1): pure functions of tensors."""

from __future__ import annotations

import torch

from nurie.config.model import DiffusionConfig


def alphas_cumprod(config: DiffusionConfig) -> torch.Tensor:
    """Cumulative signal power of the scaled-linear schedule, ``num_train_timesteps`` values."""
    root = torch.linspace(
        config.beta_start**0.5,
        config.beta_end**0.5,
        config.num_train_timesteps,
        dtype=torch.float64,
    )
    alphas = torch.cumprod(1 - root.square(), dim=0)
    return _zero_terminal_snr(alphas) if config.rescale_betas_zero_snr else alphas


def _zero_terminal_snr(alphas: torch.Tensor) -> torch.Tensor:
    """Shifts and scales sqrt(alpha) so that the last value is 0 and the first is kept."""
    root = alphas.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * first / (first - last)).square()


def _per_row(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like.dtype).view(-1, *(1,) * (like.ndim - 1))


def add_noise(latents: torch.Tensor, noise: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """``sqrt(a) * latents + sqrt(1 - a) * noise`` for one ``a`` per row."""
    return (
        _per_row(alphas.sqrt(), latents) * latents + _per_row((1 - alphas).sqrt(), latents) * noise
    )


def velocity(latents: torch.Tensor, noise: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """The v target: ``sqrt(a) * noise - sqrt(1 - a) * latents``."""
    return (
        _per_row(alphas.sqrt(), latents) * noise - _per_row((1 - alphas).sqrt(), latents) * latents
    )


def offset_noise(shape: torch.Size, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Normal noise plus ``strength`` times one extra draw per (sample, channel)."""
    noise = torch.randn(shape, generator=generator)
    offset = torch.randn((*shape[:2], 1, 1), generator=generator)
    return noise + strength * offset


def min_snr_weight(alphas: torch.Tensor, gamma: float) -> torch.Tensor:
    """Min-SNR weight for v-prediction, ``min(snr, gamma) / (snr + 1)``, per row."""
    snr = alphas / (1 - alphas)
    return snr.clamp(max=gamma) / (snr + 1)
