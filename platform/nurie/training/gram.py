"""The Gram regularization loss (method section 5).

For token outputs ``F`` (``B x N x C``), L2-normalised over C, ``G = F F^T`` tells which places look
alike. The misaligned branch must keep the aligned branch's G.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from nurie.config.train import GramConfig


def gram_matrix(tokens: torch.Tensor) -> torch.Tensor:
    """``B x N x C`` tokens to ``B x N x N`` cosine similarities of places."""
    normed = F.normalize(tokens, dim=-1)
    return normed @ normed.transpose(1, 2)


def gram_loss(
    misaligned: torch.Tensor,
    aligned: torch.Tensor,
    reduction: Literal["mean", "frobenius"] = "mean",
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Distance of the misaligned branch's Gram matrix to the aligned branch's, which is detached.

    Args:
        misaligned: ``B x N x C``.
        aligned: ``B x N x C``, the anchor: no gradient flows into it.
        reduction: ``mean`` of squares, or the paper's ``frobenius`` sum per sample.
        weights: ``B x N`` in [0, 1]; a pair of places counts with the product of its weights.
    """
    difference = gram_matrix(misaligned) - gram_matrix(aligned.detach())
    squared = difference.square()
    if weights is not None:
        squared = squared * weights[:, :, None] * weights[:, None]
    return squared.mean() if reduction == "mean" else squared.sum((1, 2)).mean()


def gram_weight(config: GramConfig, step: int, total_steps: int) -> float:
    """Weight at a step: 0 until ``start_fraction``, then a linear ramp, then ``weight``."""
    start = config.start_fraction * total_steps
    if step < start:
        return 0.0
    ramp = config.ramp_fraction * total_steps
    return config.weight * (min(1.0, (step - start) / ramp) if ramp > 0 else 1.0)
