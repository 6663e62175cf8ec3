"""The benchmarks run, and what they compare is equal."""

from __future__ import annotations

import pytest
import torch

from benchmarks import dual_branch, gpu, inference, savings
from benchmarks.sizes import Problem

SMALL = Problem(batch=2, side=8)


def test_the_alternatives_of_the_training_step_have_one_gradient() -> None:
    rows = list(dual_branch.run(SMALL, rounds=1))
    assert len(rows) == 3
    assert all(float(row.exact.removeprefix("gradients ")) < 1e-5 for row in rows)
    assert all(row.ours > 0 and row.other > 0 for row in rows)


def test_the_published_step_has_the_loss_of_ours() -> None:
    unet, encoder = SMALL.denoiser(), SMALL.sketch_encoder()
    ours = dual_branch.shared_branches(SMALL, unet, encoder)()
    published = dual_branch.as_published(SMALL)[0]()
    torch.testing.assert_close(ours.detach(), published, rtol=1e-4, atol=1e-6)


def test_every_saving_changes_nothing() -> None:
    rows = list(savings.run(SMALL, rounds=1))
    assert len(rows) == 5
    assert all(float(row.exact) < 1e-5 for row in rows)


def test_guidance_in_one_call_equals_guidance_in_two() -> None:
    row = inference.run(SMALL, steps=2, rounds=1)
    assert float(row.exact.removeprefix("plain guidance ")) < 1e-4


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure for minutes")
def test_without_a_gpu_nothing_is_claimed(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "nothing is measured" in capsys.readouterr().out
