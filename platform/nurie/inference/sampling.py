"""The denoising loop: guidance, samplers, backgrounds that stay."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import SchedulerMixin

from nurie.models.conditioning import Conditioning
from nurie.models.unet import ColorizationUNet


@dataclass(frozen=True)
class Guidance:
    """How predictions are combined.

    Args:
        reference: Scale of reference guidance; 1 and less is without.
        sketch: Scale of sketch guidance; 1 is without.
        start: Share of the steps before either begins.
        end: Share of the steps after which both end.
    """

    reference: float = 1.0
    sketch: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def active(self, index: int, steps: int) -> bool:
        """Whether a step (from 0) is guided."""
        return self.start <= index / steps < self.end


@dataclass(frozen=True)
class KeptBackground:
    """A background that stays as it is, outside the foreground.

    Args:
        latents: Of the background, ``B x C x h x w``.
        foreground: 1 where the picture is made, ``B x 1 x h x w``.
    """

    latents: torch.Tensor
    foreground: torch.Tensor

    def restore(
        self,
        made: torch.Tensor,
        noise: torch.Tensor,
        scheduler: SchedulerMixin,
        following: torch.Tensor | None,
    ) -> torch.Tensor:
        """Puts the background back, as noisy as the next step expects it (None: clean)."""
        kept = self.latents
        if following is not None:
            kept = scheduler.add_noise(kept, noise, following.reshape(1))  # type: ignore[attr-defined]
        return torch.where(self.foreground > 0, made, kept.to(made))


def denoise(
    unet: ColorizationUNet,
    scheduler: SchedulerMixin,
    noise: torch.Tensor,
    conditioning: Conditioning,
    guidance: Guidance,
    generators: list[torch.Generator],
    kept: KeptBackground | None,
    steps: Callable[[Iterable], Iterable],
    after_step: Callable[[int, torch.Tensor, dict[str, torch.Tensor]], torch.Tensor | None],
) -> torch.Tensor:
    """Denoises a batch.

    Args:
        unet: The denoiser.
        scheduler: With its timesteps set; not used by anybody else.
        noise: ``B x C x h x w``.
        conditioning: With a null branch if the reference guides.
        guidance: Scales and interval.
        generators: One per picture, for samplers that draw noise.
        kept: Background to keep, if any.
        steps: Wraps the iteration, for a progress bar.
        after_step: Called with index, timestep, and the latents as they are and as they are
            predicted to become; may return other latents, or raise.

    Returns:
        Normalised latents.
    """
    takes = "generator" in inspect.signature(scheduler.step).parameters  # type: ignore[attr-defined]
    extra: dict[str, Any] = {"generator": generators} if takes else {}
    timesteps = scheduler.timesteps  # type: ignore[attr-defined]
    latents = noise * scheduler.init_noise_sigma  # type: ignore[attr-defined]
    for index, timestep in enumerate(steps(timesteps)):
        scaled = scheduler.scale_model_input(latents, timestep)  # type: ignore[attr-defined]
        active = guidance.active(index, len(timesteps))
        prediction = _predict(unet, scaled, timestep, conditioning, guidance, active)
        taken = scheduler.step(prediction, timestep, latents, **extra)  # type: ignore[attr-defined]
        latents, predicted = taken.prev_sample, _predicted(scheduler, taken)
        if kept is not None:
            following = timesteps[index + 1] if index + 1 < len(timesteps) else None
            latents = kept.restore(latents, noise, scheduler, following)
        changed = after_step(index, timestep, {"latents": latents, "predicted": predicted})
        latents = latents if changed is None else changed
    return latents


def _predict(
    unet: ColorizationUNet,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    conditioning: Conditioning,
    guidance: Guidance,
    active: bool,
) -> torch.Tensor:
    """The guided prediction: away from no reference, and away from no sketch."""
    with_all = replace(conditioning, num_null_branches=0)
    if not active:
        return unet(latents, timestep, with_all).sample
    prediction = given = unet(latents, timestep, conditioning).sample
    if conditioning.num_null_branches:
        given, without = prediction.chunk(2)
        prediction = without + guidance.reference * (given - without)
    if guidance.sketch != 1:
        blank = replace(with_all, sketch_features=None)
        without = unet(latents, timestep, blank).sample
        prediction = prediction + (guidance.sketch - 1) * (given - without)
    return prediction


def _predicted(scheduler: SchedulerMixin, taken: Any) -> torch.Tensor:
    """The clean latents a step foresaw: multistep samplers keep them, others hand them out."""
    kept = getattr(scheduler, "model_outputs", None)
    return kept[-1] if kept else taken.pred_original_sample
