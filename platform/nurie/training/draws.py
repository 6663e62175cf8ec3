"""The random numbers of one training step, drawn in one place so that a step can be repeated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling

from nurie.config.train import StageBase, TimestepConfig
from nurie.diffusion.process import add_noise, offset_noise, velocity


@dataclass(frozen=True)
class StepDraws:
    """What is random in a step, and what follows from it.

    Args:
        timesteps: ``B``.
        noisy_latents: ``B x C x h x w``.
        target: The v target, same shape.
        alphas: Cumulative signal power at the timesteps, ``B``.
        keep_reference: ``B``, 0 where the reference is dropped (in both branches).
        keep_sketch: Four rows ``B``, 0 where a sketch feature is dropped.
    """

    timesteps: torch.Tensor
    noisy_latents: torch.Tensor
    target: torch.Tensor
    alphas: torch.Tensor
    keep_reference: torch.Tensor
    keep_sketch: torch.Tensor

    def drop_reference(self, tokens: torch.Tensor) -> torch.Tensor:
        """Zeroes the tokens ``R*B x N x D`` of dropped samples, in all branches alike."""
        keep = self.keep_reference.repeat(tokens.shape[0] // self.keep_reference.shape[0])
        return tokens * keep[:, None, None].to(tokens.dtype)

    def drop_sketch(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Zeroes dropped sketch features, each on its own."""
        return [
            feature * keep.view(-1, 1, 1, 1).to(feature.dtype)
            for feature, keep in zip(features, self.keep_sketch, strict=True)
        ]


def step_generator(seed: int, stage: str, step: int, rank: int) -> torch.Generator:
    """A generator that depends on nothing but these four."""
    mixed = np.random.SeedSequence([seed, step, rank, *stage.encode()])
    return torch.Generator().manual_seed(int(mixed.generate_state(1, np.uint64)[0] >> 1))


def draw_timesteps(
    config: TimestepConfig, batch: int, count: int, generator: torch.Generator
) -> torch.Tensor:
    """``batch`` timesteps of ``0 .. count - 1``, by the configured density.

    Args:
        config: Uniform, or the logit-normal density of Esser et al. (2024), section 3.1.
        batch: Number of samples.
        count: Number of timesteps of the schedule.
        generator: A CPU generator.
    """
    if config.density == "uniform":
        return torch.randint(count, (batch,), generator=generator)
    share = compute_density_for_timestep_sampling(
        "logit_normal", batch, config.logit_mean, config.logit_std, generator=generator
    )
    return (share * count).long().clamp(max=count - 1)


def draw_step(
    latents: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    stage: StageBase,
    generator: torch.Generator,
) -> StepDraws:
    """Draws timesteps, noise and dropout for a batch of latents.

    Args:
        latents: ``B x C x h x w``.
        alphas_cumprod: The schedule, ``T`` values.
        stage: Settings of noise and dropout.
        generator: A CPU generator.
    """
    batch, device = latents.shape[0], latents.device
    timesteps = draw_timesteps(stage.timesteps, batch, len(alphas_cumprod), generator)
    alphas = alphas_cumprod[timesteps].to(device)
    noise = offset_noise(latents.shape, stage.noise_offset, generator).to(latents)
    keep = torch.rand(5, batch, generator=generator)
    return StepDraws(
        timesteps=timesteps.to(device),
        noisy_latents=add_noise(latents, noise, alphas),
        target=velocity(latents, noise, alphas),
        alphas=alphas,
        keep_reference=(keep[0] >= stage.conditioning_dropout_prob).float().to(device),
        keep_sketch=(keep[1:] >= stage.sketch_dropout_prob).float().to(device),
    )
