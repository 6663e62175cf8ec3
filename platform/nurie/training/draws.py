"""The random numbers of one training step, drawn in one place so that a step can be repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling

from nurie.config.train import StageBase, TimestepConfig
from nurie.diffusion.process import add_noise, offset_noise, velocity

RowGenerators = Sequence[torch.Generator]
"""A CPU generator for every sample of a batch: what a sample gets does not depend on the others."""


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


def row_generators(seed: int, stage: str, step: int, rows: range) -> list[torch.Generator]:
    """Generators that depend on nothing but these: not on the number of workers or micro-batches.

    Args:
        seed: Seed of the run.
        stage: Kind of the stage.
        step: Optimizer step.
        rows: Places of the samples within the whole batch of the step.
    """
    mixed = (np.random.SeedSequence([seed, step, row, *stage.encode()]) for row in rows)
    return [
        torch.Generator().manual_seed(int(each.generate_state(1, np.uint64)[0] >> 1))
        for each in mixed
    ]


def draw_rows(
    generators: RowGenerators, draw: Callable[[torch.Generator], torch.Tensor]
) -> torch.Tensor:
    """One draw per sample, stacked."""
    return torch.stack([draw(generator) for generator in generators])


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
    generators: RowGenerators,
) -> StepDraws:
    """Draws timesteps, noise and dropout for a batch of latents.

    Args:
        latents: ``B x C x h x w``.
        alphas_cumprod: The schedule, ``T`` values.
        stage: Settings of noise and dropout.
        generators: One per sample.
    """
    device, count = latents.device, len(alphas_cumprod)
    one = torch.Size((1, *latents.shape[1:]))
    timesteps = draw_rows(generators, lambda g: draw_timesteps(stage.timesteps, 1, count, g)[0])
    alphas = alphas_cumprod[timesteps].to(device)
    noise = draw_rows(generators, lambda g: offset_noise(one, stage.noise_offset, g)[0]).to(latents)
    keep = draw_rows(generators, lambda g: torch.rand(5, generator=g)).T
    return StepDraws(
        timesteps=timesteps.to(device),
        noisy_latents=add_noise(latents, noise, alphas),
        target=velocity(latents, noise, alphas),
        alphas=alphas,
        keep_reference=(keep[0] >= stage.conditioning_dropout_prob).float().to(device),
        keep_sketch=(keep[1:] >= stage.sketch_dropout_prob).float().to(device),
    )
