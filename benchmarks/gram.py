"""The Gram loss against the loss as it is written down."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.measure import Row, compare
from benchmarks.sizes import Problem
from nurie.training.gram import gram_loss, gram_matrix


def run(problem: Problem, rounds: int = 3) -> Iterator[Row]:
    """Measure forward and backward at the two attention levels of SDXL at 1024 px."""
    # At 1024 tokens of 1280 channels the plain form already has the smaller matrices.
    for places, channels, goal in ((1024, 1280, 0.5), (4096, 640, 2.0)):
        misaligned = problem.normal(1, places, channels, seed=0).requires_grad_()
        aligned = misaligned.detach() + 0.1 * problem.normal(1, places, channels, seed=1)

        def ours(x: torch.Tensor = misaligned, y: torch.Tensor = aligned) -> None:
            x.grad = None
            gram_loss(x, y).backward()

        def plain(x: torch.Tensor = misaligned, y: torch.Tensor = aligned) -> None:
            x.grad = None
            (gram_matrix(x) - gram_matrix(y)).square().mean().backward()

        gradients = []
        for step in (ours, plain):
            step()
            assert misaligned.grad is not None
            gradients.append(misaligned.grad.clone())
        difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
        seconds = compare(ours, plain, rounds, problem.device)
        name = f"Gram loss, {places} tokens of {channels} channels | as written"
        yield Row(name, *seconds, goal, f"gradients {difference:.0e}")
