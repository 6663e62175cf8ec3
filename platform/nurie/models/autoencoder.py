"""Autoencoder between pictures and normalised latents (method section 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL

if TYPE_CHECKING:
    from nurie.config.model import VaeConfig


def build_vae(config: VaeConfig) -> AutoencoderKL:
    """Return a fresh autoencoder of the preset's architecture."""
    levels = len(config.block_out_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        mid_block_add_attention=config.mid_block_add_attention,
        scaling_factor=config.scaling_factor,
    )


def encode_latents(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """Encode pictures to the latents that diffusion works on.

    The most likely latents are taken, not a sample: the same picture always gives the same latents.

    Args:
        vae: The autoencoder; its own configuration decides the normalisation.
        pixels: Pictures in [-1, 1], B x 3 x H x W.

    Returns:
        Normalised latents, B x C x H/8 x W/8.
    """
    latents = vae.encode(pixels).latent_dist.mode()
    statistics = _statistics(vae, latents)
    if statistics is not None:
        mean, std = statistics
        latents = (latents - mean) / std
    return latents * vae.config.scaling_factor


def decode_latents(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Decode normalised latents; the inverse of :func:`encode_latents`.

    Args:
        vae: The autoencoder the latents came from.
        latents: Normalised latents, B x C x h x w.

    Returns:
        Pictures, nominally in [-1, 1] (not clamped), B x 3 x 8h x 8w.
    """
    latents = latents / vae.config.scaling_factor
    statistics = _statistics(vae, latents)
    if statistics is not None:
        mean, std = statistics
        latents = latents * std + mean
    return vae.decode(latents).sample


def _statistics(vae: AutoencoderKL, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Per-channel mean and deviation of the raw latents, where the configuration has them."""
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        return None
    shape = (1, -1, 1, 1)
    return like.new_tensor(mean).view(shape), like.new_tensor(std).view(shape)
