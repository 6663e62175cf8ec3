"""Samplers: the default of a model folder, and those that a request may ask for."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from nurie.config.model import DiffusionConfig
from nurie.inference.controls import ControlError

SCHEDULERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "dpmpp_2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "euler": (EulerDiscreteScheduler, {}),
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "unipc": (UniPCMultistepScheduler, {}),
}
"""Name of a control's value -> class and settings; the names are those of ``controls.CONTROLS``."""
_WITHOUT_KARRAS = "ddim"


def build_scheduler(config: DiffusionConfig) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ (2M) for v-prediction on the model's noise schedule."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=config.rescale_betas_zero_snr,
    )


def choose_scheduler(own: SchedulerMixin, name: str, karras_sigmas: bool) -> SchedulerMixin:
    """A fresh sampler for one call, on the model's noise schedule.

    Args:
        own: The model folder's sampler, which ``default`` names.
        name: ``default`` or a name of ``SCHEDULERS``.
        karras_sigmas: Space the noise levels as Karras et al. (2022) do.

    Raises:
        ControlError: The sampler has no such spacing.
    """
    kind, settings = SCHEDULERS.get(name, (type(own), {}))
    if karras_sigmas:
        if name == _WITHOUT_KARRAS or not hasattr(kind(), "_convert_to_karras"):
            raise ControlError("karras_sigmas", f"the sampler {name} does not know them")
        settings = {**settings, "use_karras_sigmas": True}
    return kind.from_config(own.config, **settings)
