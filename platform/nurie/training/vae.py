"""Training of the small autoencoder."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D

from nurie.config.train import OptimizerConfig
from nurie.models.autoencoder import build_vae, decode_latents, encode_latents
from nurie.training.components import (
    bfloat16_where_fast,
    load_state,
    progress_steps,
    save_state,
)
from nurie.training.learning_rate import learning_rate
from nurie.training.optimizer import MuonAdamW
from nurie.training.pictures import PicturePool, TrainingPicture, held_out_pictures

if TYPE_CHECKING:
    from pathlib import Path

    from nurie.config.train import VaeTrainConfig

_WARMUP_STEPS = 50
_CROP_SHARE = 0.9
_HALF_SIZE_PROBABILITY = 0.2
_MAX_LATENT_NOISE = 0.08
_MAX_LATENT_NOISE_FROZEN = 0.25
_EDGE_WEIGHT = 0.5
_STATISTICS_PICTURES = 256
_HELD_OUT_PICTURES = 32


def train_vae(config: VaeTrainConfig) -> Path:
    """Train the preset's autoencoder and save it.

    Interrupted, the same call continues from its newest saved state.

    Args:
        config: The run.

    Returns:
        The folder ``config.output / "vae"``; its configuration holds the mean and deviation of
        the latents.

    Raises:
        ValueError: If the saved state belongs to another architecture.
    """
    torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    vae = _start(config).to(memory_format=torch.channels_last)
    optimizer = MuonAdamW(vae, config.learning_rate)
    schedule = OptimizerConfig(
        learning_rate=config.learning_rate, schedule="cosine", warmup_steps=_WARMUP_STEPS
    )
    state_file = config.output / ".vae-state.pt"
    done = load_state(state_file, {"vae": vae}, optimizer)
    size = config.model.image_size
    pool = PicturePool(size, seed=config.seed + done)
    rng = np.random.default_rng([config.seed, done])
    for step, bar in progress_steps("autoencoder", done, config.steps):
        rate = learning_rate(schedule, step, config.steps)
        # Small crops are four times cheaper; whole pictures at the end settle the group norms.
        side = size // 2 if step < config.steps * _CROP_SHARE else size
        pixels = _pixels(_cut(pool.choose(config.batch_size), side, rng))
        with bfloat16_where_fast():
            loss = _loss(vae, pixels, config, rng)
        loss.backward()
        optimizer.step(rate)
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
            save_state(state_file, step + 1, {"vae": vae}, optimizer)
            psnr = _save(vae, pool, config)
            bar.print(f"step {step + 1}: loss {loss.item():.4f}, held-out PSNR {psnr:.2f} dB")
    psnr = _save(vae, pool, config)
    print(f"autoencoder: held-out PSNR {psnr:.2f} dB")
    state_file.unlink(missing_ok=True)
    return config.output / "vae"


def _start(config: VaeTrainConfig) -> AutoencoderKL:
    if config.freeze_encoder:
        vae = AutoencoderKL.from_pretrained(config.output / "vae")
        for part in (vae.encoder, vae.quant_conv):
            part.requires_grad_(False)
        return vae
    vae = build_vae(config.model.vae)
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            # Residual blocks that start as identities let the network learn at once.
            torch.nn.init.zeros_(module.conv2.weight)
    return vae


def _cut(pictures: list[TrainingPicture], side: int, rng: np.random.Generator) -> np.ndarray:
    """Random squares of the pictures, uint8 B x side x side x 3."""
    room = pictures[0].image.shape[0] - side + 1
    corners = rng.integers(0, room, (len(pictures), 2))
    return np.stack(
        [
            picture.image[top : top + side, left : left + side]
            for picture, (top, left) in zip(pictures, corners, strict=True)
        ]
    )


def _pixels(pictures: np.ndarray) -> torch.Tensor:
    """Pictures, uint8 B x H x W x 3, as the autoencoder wants them: [-1, 1], B x 3 x H x W."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def _loss(
    vae: AutoencoderKL, pixels: torch.Tensor, config: VaeTrainConfig, rng: np.random.Generator
) -> torch.Tensor:
    posterior = vae.encode(pixels).latent_dist
    latents = posterior.mode()
    # A denoiser never hits the latents exactly: the decoder must bear errors. Only small ones
    # while the encoder learns too, or it would give up detail for safety.
    limit = _MAX_LATENT_NOISE_FROZEN if config.freeze_encoder else _MAX_LATENT_NOISE
    noise = torch.rand(len(latents), 1, 1, 1) * limit * latents.detach().std()
    latents = latents + noise * torch.randn_like(latents)
    if rng.random() < _HALF_SIZE_PROBABILITY:
        # Latents that can be shrunk like pictures are smooth, and so easier to denoise.
        latents, pixels = F.avg_pool2d(latents, 2), F.avg_pool2d(pixels, 2)
    result = vae.decode(latents).sample.float()
    pixel_loss = F.l1_loss(result, pixels) + F.mse_loss(result, pixels)
    kl = posterior.kl().mean() / latents[0].numel()
    return pixel_loss + _EDGE_WEIGHT * _edge_loss(result, pixels) + config.kl_weight * kl


def _edge_loss(result: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """L1 between the differences of neighbouring pixels: thin lines weigh more than in plain L1."""
    error = result - pixels
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


@torch.no_grad()
def _save(vae: AutoencoderKL, pool: PicturePool, config: VaeTrainConfig) -> float:
    """Save the autoencoder with its latents' statistics and return the held-out PSNR."""
    saved = copy.deepcopy(vae).half()
    if not config.freeze_encoder:
        pixels = _pixels(np.stack([p.image for p in pool.first(_STATISTICS_PICTURES)]))
        latents = torch.cat([vae.encode(part).latent_dist.mode() for part in pixels.split(32)])
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        saved.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    saved.save_pretrained(config.output / "vae")
    held_out = held_out_pictures(_HELD_OUT_PICTURES, config.model.image_size, config.seed)
    return reconstruction_psnr(saved.float(), np.stack([p.image for p in held_out]))


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, pictures: np.ndarray) -> float:
    """Mean peak signal-to-noise ratio of reconstructions, in dB.

    Args:
        vae: The autoencoder.
        pictures: sRGB pictures, uint8 [B, H, W, 3].
    """
    ratios = []
    for part in _pixels(pictures).split(16):
        result = decode_latents(vae, encode_latents(vae, part)).clamp(-1, 1)
        error = ((result - part) / 2).square().mean((1, 2, 3))
        ratios.append(-10 * error.log10())
    return torch.cat(ratios).mean().item()
