"""The Gram regularization loss (method section 5).

For token outputs ``F`` (``B x N x C``), L2-normalised over C, ``G = F F^T`` tells which places look
alike. The misaligned branch must keep the aligned branch's G.

With ``X`` and ``Y`` the normalised tokens of both branches, ``D = X - Y`` and ``S = (X + Y) / 2``,

    X X^T - Y Y^T = S D^T + D S^T,

so the squared distance can be computed from N x N matrices, a few rows at a time, or from the
C x C matrices ``D^T D``, ``S^T S`` and ``S^T D`` alone. Both forms are exact; the one with the
smaller matrices is used. Both stay precise when the branches are nearly equal, where the difference
of two Gram matrices loses its digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F

from nurie.config.train import GramConfig

GramForm = Literal["tokens", "channels"]
_CHUNK_ELEMENTS = 2**20
_EPS = 1e-12


def gram_matrix(tokens: torch.Tensor) -> torch.Tensor:
    """``B x N x C`` tokens to ``B x N x N`` cosine similarities of places."""
    normed = F.normalize(tokens, dim=-1)
    return normed @ normed.transpose(1, 2)


def gram_loss(
    misaligned: torch.Tensor,
    aligned: torch.Tensor,
    reduction: Literal["mean", "frobenius"] = "mean",
    weights: torch.Tensor | None = None,
    form: GramForm | None = None,
) -> torch.Tensor:
    """Distance of the misaligned branch's Gram matrix to the aligned branch's, which is detached.

    Args:
        misaligned: ``B x N x C``.
        aligned: ``B x N x C``, the anchor: no gradient flows into it.
        reduction: ``mean`` of squares, or the paper's ``frobenius`` sum per sample.
        weights: ``B x N`` in [0, 1]; a pair of places counts with the product of its weights.
        form: Matrices of ``tokens x tokens`` or ``channels x channels`` (None: the smaller ones).
    """
    places, channels = misaligned.shape[1:]
    if form is None:
        form = "tokens" if places <= channels else "channels"
    squared: torch.Tensor = _GramDistance.apply(misaligned, aligned.detach(), weights, form)
    return (squared / places**2 if reduction == "mean" else squared).mean()


def gram_weight(config: GramConfig, step: int, total_steps: int) -> float:
    """Weight at a step: 0 until ``start_fraction``, then a linear ramp, then ``weight``."""
    start = config.start_fraction * total_steps
    if step < start:
        return 0.0
    ramp = config.ramp_fraction * total_steps
    return config.weight * (min(1.0, (step - start) / ramp) if ramp > 0 else 1.0)


class _GramDistance(torch.autograd.Function):
    """Squared distance of two Gram matrices, one value per sample.

    The gradient for X is ``4 (X X^T - Y Y^T) X``. Nothing of size N x N or N x C is kept between
    the passes; rows are normalised again, a chunk at a time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        misaligned: torch.Tensor,
        aligned: torch.Tensor,
        weights: torch.Tensor | None,
        form: GramForm,
    ) -> torch.Tensor:
        tokens = (misaligned, aligned, weights)
        if form == "channels":
            matrices = _channel_matrices(*tokens)
            dd, ss, sd = matrices
            squared = 2 * (dd * ss + sd * sd.transpose(1, 2)).sum((1, 2))
        else:
            matrices = ()
            d, s = _centred(*tokens, slice(None))
            squared = d.new_zeros(len(d))
            for part in _chunks(d.shape[0], d.shape[1], d.shape[1]):
                squared = squared + _difference_rows(d, s, part).square().sum((1, 2))
        ctx.form = form
        ctx.has_weights = weights is not None
        ctx.save_for_backward(
            misaligned, aligned, *matrices, *([weights] if ctx.has_weights else [])
        )
        return squared

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] (one output)
        misaligned, aligned, *rest = ctx.saved_tensors
        weights = rest.pop() if ctx.has_weights else None
        batch, places, channels = misaligned.shape
        result = torch.empty_like(misaligned)
        if ctx.form == "channels":
            dd, ss, sd = rest
            dx, sx = sd.transpose(1, 2) + dd / 2, ss + sd / 2
            for part in _chunks(batch, places, channels):
                d, s = _centred(misaligned, aligned, weights, part)
                _store(result, part, 4 * (s @ dx + d @ sx), grad, misaligned, weights)
        else:
            d, s = _centred(misaligned, aligned, weights, slice(None))
            x = s + d / 2
            for part in _chunks(batch, places, places):
                rows = 4 * (_difference_rows(d, s, part) @ x)
                _store(result, part, rows, grad, misaligned, weights)
        return result, None, None, None


def _chunks(batch: int, places: int, width: int) -> Iterator[slice]:
    """Runs of rows that are ``width`` wide and small enough together."""
    rows = max(1, _CHUNK_ELEMENTS // (batch * width))
    for start in range(0, places, rows):
        yield slice(start, start + rows)


def _inverse_norm(rows: torch.Tensor) -> torch.Tensor:
    return rows.norm(dim=-1, keepdim=True).clamp_min(_EPS).reciprocal()


def _centred(
    misaligned: torch.Tensor, aligned: torch.Tensor, weights: torch.Tensor | None, part: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Difference and mean of both branches' unit rows, times the root of their weights.

    The difference is made from that of the tokens, not of the rounded unit rows: with
    ``e = f - a``, ``f/|f| - a/|a| = (e - (e.(f+a) / (|f|+|a|)) a/|a|) / |f|``.
    """
    f, a = misaligned[:, part], aligned[:, part]
    inverse_f, inverse_a = _inverse_norm(f), _inverse_norm(a)
    y, e = a * inverse_a, f - a
    norms = inverse_f.reciprocal() + inverse_a.reciprocal()
    d = (e - ((e * (f + a)).sum(-1, keepdim=True) / norms) * y) * inverse_f
    s = y + d / 2
    if weights is None:
        return d, s
    root = weights[:, part, None].sqrt()
    return d * root, s * root


def _channel_matrices(
    misaligned: torch.Tensor, aligned: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``D^T D``, ``S^T S`` and ``S^T D``, each ``B x C x C``."""
    batch, places, channels = misaligned.shape
    dd, ss, sd = (misaligned.new_zeros(batch, channels, channels) for _ in range(3))
    for part in _chunks(batch, places, channels):
        d, s = _centred(misaligned, aligned, weights, part)
        dd.baddbmm_(d.transpose(1, 2), d)
        ss.baddbmm_(s.transpose(1, 2), s)
        sd.baddbmm_(s.transpose(1, 2), d)
    return dd, ss, sd


def _difference_rows(d: torch.Tensor, s: torch.Tensor, part: slice) -> torch.Tensor:
    """Rows of ``X X^T - Y Y^T``."""
    return s[:, part] @ d.transpose(1, 2) + d[:, part] @ s.transpose(1, 2)


def _store(
    result: torch.Tensor,
    part: slice,
    grad_rows: torch.Tensor,
    grad: torch.Tensor,
    misaligned: torch.Tensor,
    weights: torch.Tensor | None,
) -> None:
    """Carry the gradient of normalised rows back to the tokens."""
    inverse = _inverse_norm(misaligned[:, part])
    unit = misaligned[:, part] * inverse
    along = (unit * grad_rows).sum(-1, keepdim=True)
    scale = grad[:, None, None] * inverse
    if weights is not None:
        scale = scale * weights[:, part, None].sqrt()
    result[:, part] = scale * (grad_rows - unit * along)
