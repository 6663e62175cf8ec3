"""Which parameters Muon trains, and what it does to a convolution's kernel."""

from __future__ import annotations

import pytest
import torch

from nurie.config.train import BackboneStage, OptimizerConfig
from nurie.training.parameter_groups import uses_muon
from nurie.training.stages import TrainingStage, build_stage
from nurie_pipelines.train.engines.optimizer import build_optimizer, set_learning_rate
from tests.tiny import tiny_model

RATES = OptimizerConfig(kind="muon", learning_rate=1e-3, muon_learning_rate=0.02, weight_decay=0)


def stage(optimizer: OptimizerConfig) -> TrainingStage:
    settings = BackboneStage(steps=1, optimizer=optimizer)
    return build_stage(tiny_model(), settings, lambda pixels: pixels)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("unet.down_blocks.0.resnets.0.conv1.weight", (32, 32, 3, 3), True),
        ("unet.mid_block.attentions.0.proj_in.weight", (32, 32), True),
        ("unet.mid_block.attentions.0.proj_in.bias", (32,), False),
        ("unet.time_embedding.linear_1.weight", (128, 32), False),
        ("unet.conv_in.weight", (32, 4, 3, 3), False),
    ],
)
def test_muon_trains_hidden_matrices(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert uses_muon(name, torch.zeros(shape)) == expected


def test_a_step_moves_a_kernel_by_an_orthogonal_matrix() -> None:
    module = stage(RATES)
    optimizer = build_optimizer(module)
    named = dict(module.trained_parameters())
    generator = torch.Generator().manual_seed(0)
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    set_learning_rate(optimizer, RATES.learning_rate / 2, RATES)
    optimizer.step()
    kernels = [name for name in named if named[name].ndim == 4 and uses_muon(name, named[name])]
    assert len(kernels) > 5
    for name in kernels:
        change = (named[name] - before[name]).detach().flatten(1) / (RATES.muon_learning_rate / 2)
        rows, columns = change.shape
        values = torch.linalg.svdvals(change) / max(1, rows / columns) ** 0.5
        # Five Newton-Schulz steps bring the singular values near 1, not to 1.
        assert values.max() < 1.3 and values.median() > 0.5, name
    for name, parameter in named.items():
        if parameter.ndim == 1:
            # The first step of AdamW is the learning rate times the sign of the gradient.
            change = (parameter - before[name]).detach().abs()
            torch.testing.assert_close(
                change, torch.full_like(change, RATES.learning_rate / 2), atol=2e-7, rtol=1e-2
            )
