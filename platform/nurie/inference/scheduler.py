"""The default sampler of a model folder."""

from __future__ import annotations

from diffusers import DPMSolverMultistepScheduler

from nurie.config.model import DiffusionConfig


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
