"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch

NamedTensors = Iterable[tuple[str, torch.Tensor]]


class Ema:
    """Keeps a slowly moving copy of tensors, in fp32.

    Under ZeRO these are a worker's parts of the parameters: the average is divided like them.

    Args:
        tensors: Names and values, as they are at the start.
        decay: Share of the old average kept per step; early steps keep less, so that the average
            does not remember the start.
    """

    def __init__(self, tensors: NamedTensors, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: tensor.detach().float().clone() for name, tensor in tensors}

    @torch.no_grad()
    def update(self, tensors: NamedTensors, step: int) -> None:
        """Moves the average towards the values after a step (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in tensors:
            self.shadow[name].lerp_(tensor.detach().float(), 1 - decay)
