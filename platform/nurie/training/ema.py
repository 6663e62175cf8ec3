"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

NamedParameters = Iterable[tuple[str, nn.Parameter]]


class Ema:
    """Keeps a slowly moving copy of parameters, in fp32.

    Args:
        parameters: Names and whole parameters.
        decay: Share of the old average kept per step; early steps keep less, so that the average
            does not remember the start.
    """

    def __init__(self, parameters: NamedParameters, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: p.detach().float().clone() for name, p in parameters}

    @torch.no_grad()
    def update(self, parameters: NamedParameters, step: int) -> None:
        """Moves the average towards the parameters after a step (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in parameters:
            self.shadow[name].lerp_(parameter.detach().float(), 1 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: NamedParameters) -> None:
        """Overwrites the parameters with the average."""
        for name, parameter in parameters:
            parameter.copy_(self.shadow[name])
