"""The dual-branch training step against the same loss in two whole passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from benchmarks.measure import Row, cpu_seconds
from benchmarks.sizes import (
    BATCH,
    CONFIG,
    SIDE,
    TOKENS,
    conditioning,
    denoiser,
    normal,
    sketch_encoder,
)
from nurie.training.gram import gram_loss, gram_matrix

BLOCKS = CONFIG.gram_block_ids
LATENTS = normal(BATCH, 4, SIDE, SIDE, seed=4)
TIMESTEPS = torch.tensor([100, 800])
SKETCH = normal(BATCH, 3, 8 * SIDE, 8 * SIDE, seed=5)
OTHER = normal(BATCH, TOKENS, CONFIG.unet.cross_attention_dim, seed=6)
Step = Callable[[], torch.Tensor]


def run(rounds: int = 3) -> Iterator[Row]:
    """Measure a step's forward and backward against both alternatives."""
    unet, encoder = denoiser(), sketch_encoder()
    modules = nn.ModuleList([unet, encoder])

    def shared() -> torch.Tensor:
        given = conditioning(encoder(SKETCH))
        assert given.reference_tokens is not None
        both = replace(given, reference_tokens=torch.cat([given.reference_tokens, OTHER]))
        out = unet(LATENTS, TIMESTEPS, both, capture=BLOCKS, keep_branches=1)
        gram = sum(gram_loss(*out.blocks[b].split(BATCH)[::-1]) for b in BLOCKS)
        return out.sample.square().mean() + gram

    def two_passes() -> torch.Tensor:
        given = conditioning(encoder(SKETCH))
        aligned = unet(LATENTS, TIMESTEPS, given, capture=BLOCKS)
        changed = replace(given, reference_tokens=OTHER)
        misaligned = unet(LATENTS, TIMESTEPS, changed, capture=BLOCKS)
        gram = sum(gram_loss(misaligned.blocks[b], aligned.blocks[b]) for b in BLOCKS)
        return aligned.sample.square().mean() + gram

    ours = _step(shared, modules)
    for name, other, goal in (
        ("two passes", _step(two_passes, modules), 1.1),
        ("two passes, blocks checkpointed as published", _as_published(), 1.4),
    ):
        exact = ""
        if goal < 1.2:
            gradients = [_gradients(step, modules) for step in (ours, other)]
            difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
            exact = f"gradients {difference:.0e}"
        seconds = cpu_seconds(ours, other, rounds)
        yield Row(f"training step with both branches | {name}", *seconds, goal, exact)


def _step(loss: Step, modules: nn.Module) -> Step:
    def step() -> torch.Tensor:
        modules.zero_grad()
        value = loss()
        value.backward()
        return value.detach()

    return step


def _gradients(step: Step, modules: nn.Module) -> torch.Tensor:
    step()
    return torch.cat([p.grad.flatten() for p in modules.parameters() if p.grad is not None])


def _as_published() -> Step:
    """Stock diffusers blocks, every one recomputed in the backward pass, outputs taken by hooks."""
    stock = UNet2DConditionModel.from_config(denoiser().config).train()
    stock.enable_gradient_checkpointing()
    encoder = sketch_encoder()
    captured: dict[int, torch.Tensor] = {}
    blocks = [m for m in _in_network_order(stock) if isinstance(m, BasicTransformerBlock)]
    for number in BLOCKS:

        def keep(_: nn.Module, __: object, output: torch.Tensor, number: int = number) -> None:
            captured[number] = output

        blocks[number - 1].register_forward_hook(keep)

    def forward(tokens: torch.Tensor, added: torch.Tensor, features: list[torch.Tensor]) -> tuple:
        sample = stock(
            LATENTS,
            TIMESTEPS,
            tokens,
            class_labels=added,
            down_intrablock_additional_residuals=list(features[1:]),
        ).sample
        return sample, dict(captured)

    def loss() -> torch.Tensor:
        given = conditioning(None)
        assert given.reference_tokens is not None
        features = encoder(SKETCH)
        aligned, first = forward(given.reference_tokens, given.added_cond, features)
        _, second = forward(OTHER, given.added_cond, features)
        gram = torch.zeros(())
        for block in BLOCKS:
            difference = gram_matrix(second[block]) - gram_matrix(first[block].detach())
            gram = gram + difference.square().mean()
        return aligned.square().mean() + gram

    return _step(loss, nn.ModuleList([stock, encoder]))


def _in_network_order(unet: UNet2DConditionModel) -> Iterator[nn.Module]:
    for part in (unet.down_blocks, unet.mid_block, unet.up_blocks):
        yield from part.modules()
