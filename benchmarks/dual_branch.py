"""The dual-branch training step against the same loss in two whole passes."""

from __future__ import annotations

from dataclasses import replace

import torch

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
from nurie.training.gram import gram_loss


def run(rounds: int = 3) -> Row:
    """Measure a step's forward and backward."""
    unet, encoder = denoiser(), sketch_encoder()
    latents, timesteps = normal(BATCH, 4, SIDE, SIDE, seed=4), torch.tensor([100, 800])
    sketch = normal(BATCH, 3, 8 * SIDE, 8 * SIDE, seed=5)
    other = normal(BATCH, TOKENS, CONFIG.unet.cross_attention_dim, seed=6)
    blocks = CONFIG.gram_block_ids
    modules = torch.nn.ModuleList([unet, encoder])

    def shared() -> torch.Tensor:
        modules.zero_grad()
        given = conditioning(encoder(sketch))
        assert given.reference_tokens is not None
        both = replace(given, reference_tokens=torch.cat([given.reference_tokens, other]))
        out = unet(latents, timesteps, both, capture=blocks, keep_branches=1)
        gram = sum(gram_loss(*out.blocks[b].split(BATCH)[::-1]) for b in blocks)
        loss = out.sample.square().mean() + gram
        loss.backward()
        return loss.detach()

    def plain() -> torch.Tensor:
        modules.zero_grad()
        given = conditioning(encoder(sketch))
        aligned = unet(latents, timesteps, given, capture=blocks)
        changed = replace(given, reference_tokens=other)
        misaligned = unet(latents, timesteps, changed, capture=blocks)
        gram = sum(gram_loss(misaligned.blocks[b], aligned.blocks[b]) for b in blocks)
        loss = aligned.sample.square().mean() + gram
        loss.backward()
        return loss.detach()

    gradients = []
    for step in (shared, plain):
        step()
        gradients.append(
            torch.cat([p.grad.flatten() for p in modules.parameters() if p.grad is not None])
        )
    difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    ours, theirs = cpu_seconds(shared, plain, rounds)
    name = "training step, both branches: shared trunk and early end | two passes"
    return Row(name, ours, theirs, 1.4, f"gradients {difference:.0e}")
