"""Settings that change how a stage's module computes, but not what."""

from __future__ import annotations

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D

from nurie.config.train import EngineConfig
from nurie.training.stages import TrainingStage

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def prepare(stage: TrainingStage, config: EngineConfig) -> None:
    """Applies precision, recomputation, memory order and compilation to a stage in place."""
    stage.autocast_dtype = _AUTOCAST[config.precision]
    if config.gradient_checkpointing:
        stage.model.enable_gradient_checkpointing()
    if config.channels_last:
        stage.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        stage.memory_format = torch.channels_last
    if config.compile:
        # Whole blocks between the attentions: one graph serves all blocks of a shape.
        for module in stage.modules():
            if isinstance(module, ResnetBlock2D | FeedForward):
                module.compile()
