"""Which optimizer trains a parameter."""

from __future__ import annotations

import torch

_MIN_MUON_CHANNELS = 8


def uses_muon(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon trains a parameter: a hidden weight matrix, no embedding, no thin edge."""
    hidden = parameter.ndim >= 2 and "embed" not in name
    return hidden and min(parameter.shape[:2]) >= _MIN_MUON_CHANNELS
