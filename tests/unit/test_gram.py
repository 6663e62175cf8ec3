"""The Gram regularization loss and its schedule."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from nurie.config.train import GramConfig
from nurie.training.gram import GramForm, gram_loss, gram_matrix, gram_weight


def tokens(seed: int, places: int = 9, channels: int = 7) -> torch.Tensor:
    return torch.randn(2, places, channels, generator=torch.Generator().manual_seed(seed))


def test_gram_matrix_is_cosine_similarity() -> None:
    matrix = gram_matrix(tokens(0))
    torch.testing.assert_close(matrix.diagonal(dim1=1, dim2=2), torch.ones(2, 9))
    a, b = tokens(0)[0, 2], tokens(0)[0, 5]
    torch.testing.assert_close(matrix[0, 2, 5], torch.cosine_similarity(a, b, dim=0))


def test_loss_ignores_rotations_of_the_channels() -> None:
    rotation = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(3)))[0]
    for form in ("tokens", "channels"):
        loss = gram_loss(tokens(0) @ rotation, tokens(0), form=form)
        assert loss.item() == pytest.approx(0, abs=1e-6)
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


def plain_loss(
    misaligned: torch.Tensor, aligned: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """The loss as it is written down."""
    squared = (gram_matrix(misaligned) - gram_matrix(aligned)).square()
    if weights is not None:
        squared = squared * weights[:, :, None] * weights[:, None]
    return squared.mean()


@pytest.mark.parametrize("form", ["tokens", "channels"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (3000, 5)])
def test_both_forms_are_the_loss(
    form: GramForm, weighted: bool, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nurie.training.gram._CHUNK_ELEMENTS", 4096)  # several chunks
    aligned = tokens(0, *shape).double()
    weights = torch.rand(2, shape[0], dtype=torch.float64) if weighted else None
    found, expected = (tokens(1, *shape).double().requires_grad_() for _ in range(2))
    loss = gram_loss(found, aligned, weights=weights, form=form)
    plain = plain_loss(expected, aligned, weights)
    torch.testing.assert_close(loss, plain)
    (3 * loss).backward()
    (3 * plain).backward()
    torch.testing.assert_close(found.grad, expected.grad)


@pytest.mark.parametrize("form", ["tokens", "channels"])
def test_gradients_are_precise_where_branches_are_nearly_equal(form: GramForm) -> None:
    aligned = tokens(0, 256, 64)
    misaligned = aligned + 1e-3 * tokens(1, 256, 64)
    exact, found = misaligned.double().requires_grad_(), misaligned.clone().requires_grad_()
    plain_loss(exact, aligned.double(), None).backward()
    gram_loss(found, aligned, form=form).backward()
    assert exact.grad is not None and found.grad is not None
    assert (found.grad - exact.grad).norm() / exact.grad.norm() < 1e-6


def test_many_tokens_need_little_memory() -> None:
    """16 384 tokens of 320 channels; their Gram matrices alone would take 2 GiB."""
    script = """
import resource, torch
from nurie.training.gram import gram_loss
torch.set_num_threads(1)
gram_loss(torch.randn(1, 64, 8, requires_grad=True), torch.randn(1, 64, 8)).backward()
x, y = torch.randn(1, 16384, 320, requires_grad=True), torch.randn(1, 16384, 320)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
gram_loss(x, y).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 64


def test_weight_follows_the_steps() -> None:
    hard = GramConfig(weight=2.0, start_fraction=0.25)
    assert [gram_weight(hard, s, 100) for s in (0, 24, 25, 99)] == [0, 0, 2, 2]
    ramp = GramConfig(weight=2.0, start_fraction=0.25, ramp_fraction=0.5)
    assert [gram_weight(ramp, s, 100) for s in (24, 25, 50, 75, 99)] == [0, 0, 1, 2, 2]
