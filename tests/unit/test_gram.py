"""The Gram regularization loss and its schedule."""

from __future__ import annotations

import pytest
import torch

from nurie.config.train import GramConfig
from nurie.training.gram import gram_loss, gram_matrix, gram_weight


def tokens(seed: int, places: int = 9, channels: int = 7) -> torch.Tensor:
    return torch.randn(2, places, channels, generator=torch.Generator().manual_seed(seed))


def test_gram_matrix_is_cosine_similarity() -> None:
    matrix = gram_matrix(tokens(0))
    torch.testing.assert_close(matrix.diagonal(dim1=1, dim2=2), torch.ones(2, 9))
    a, b = tokens(0)[0, 2], tokens(0)[0, 5]
    torch.testing.assert_close(matrix[0, 2, 5], torch.cosine_similarity(a, b, dim=0))


def test_loss_ignores_rotations_of_the_channels() -> None:
    rotation = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(3)))[0]
    assert gram_loss(tokens(0) @ rotation, tokens(0)).item() == pytest.approx(0, abs=1e-10)
    assert gram_loss(tokens(1), tokens(0)).item() > 0.01


def test_anchor_gets_no_gradient() -> None:
    aligned, misaligned = tokens(0).requires_grad_(), tokens(1).requires_grad_()
    gram_loss(misaligned, aligned).backward()
    assert aligned.grad is None
    assert misaligned.grad is not None and misaligned.grad.abs().sum() > 0


def test_frobenius_is_the_sum_over_places() -> None:
    mean, total = (gram_loss(tokens(1), tokens(0), kind) for kind in ("mean", "frobenius"))
    torch.testing.assert_close(total, mean * 81)


def test_places_without_weight_do_not_count() -> None:
    misaligned = tokens(0).clone()
    misaligned[:, 4:] = tokens(1)[:, 4:]
    weights = torch.zeros(2, 9)
    weights[:, :4] = 1
    assert gram_loss(misaligned, tokens(0), weights=weights).item() == 0
    assert gram_loss(misaligned, tokens(0)).item() > 0


def test_weight_follows_the_steps() -> None:
    hard = GramConfig(weight=2.0, start_fraction=0.25)
    assert [gram_weight(hard, s, 100) for s in (0, 24, 25, 99)] == [0, 0, 2, 2]
    ramp = GramConfig(weight=2.0, start_fraction=0.25, ramp_fraction=0.5)
    assert [gram_weight(ramp, s, 100) for s in (24, 25, 50, 75, 99)] == [0, 0, 1, 2, 2]
