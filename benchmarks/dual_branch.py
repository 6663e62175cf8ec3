"""The dual-branch training step against the same loss in two whole passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from benchmarks.measure import Row, compare
from benchmarks.sizes import Problem
from nurie.models.sketch_encoder import SketchEncoder
from nurie.models.unet import ColorizationUNet
from nurie.training.gram import gram_loss, gram_matrix

Loss = Callable[[], torch.Tensor]


def run(problem: Problem, rounds: int = 3) -> Iterator[Row]:
    """Measure a step's forward and backward against both alternatives."""
    unet, encoder = problem.denoiser(), problem.sketch_encoder()
    modules = nn.ModuleList([unet, encoder])
    ours = _step(shared_branches(problem, unet, encoder), modules)
    plain = _step(_two_passes(problem, unet, encoder), modules)
    published, stock = as_published(problem)
    gradients = _gradients(ours, modules)
    alternatives = (
        ("two passes", plain, modules, 1.2),
        ("two passes, blocks checkpointed as published", published, stock, 1.4),
    )
    for name, step, other, goal in alternatives:
        expected = _gradients(step, other)
        difference = (gradients - expected).norm() / expected.norm()
        seconds = compare(ours, step, rounds, problem.device)
        name = f"training step with both branches | {name}"
        yield Row(name, *seconds, goal, f"gradients {difference:.0e}")
    yield _over_the_ramp(problem, unet, encoder, rounds)


def _over_the_ramp(
    problem: Problem, unet: ColorizationUNet, encoder: SketchEncoder, rounds: int
) -> Row:
    """A run with the paper's ramp: in the first of three steps the Gram loss has no weight."""
    modules = nn.ModuleList([unet, encoder])
    early, late = aligned_branch(problem, unet, encoder), shared_branches(problem, unet, encoder)
    ours = [_step(each, modules) for each in (early, late, late)]
    plain = [
        _step(_two_passes(problem, unet, encoder, weight), modules) for weight in (0.0, 1.0, 1.0)
    ]
    gradients = _gradients(ours[0], modules)
    difference = (gradients - _gradients(plain[0], modules)).norm() / gradients.norm()
    seconds = compare(lambda: _all(ours), lambda: _all(plain), rounds, problem.device)
    name = "three steps of the paper's ramp, the first without Gram loss | two passes each"
    return Row(name, *seconds, 1.4, f"gradients {difference:.0e}")


def _all(steps: list[Loss]) -> torch.Tensor:
    return torch.stack([step() for step in steps]).sum()


def aligned_branch(problem: Problem, unet: ColorizationUNet, encoder: SketchEncoder) -> Loss:
    """The loss as the trainer computes it while the Gram loss has no weight."""
    latents, timesteps, sketch = problem.latents(), problem.timesteps(), problem.sketch()

    def loss() -> torch.Tensor:
        return (
            unet(latents, timesteps, problem.conditioning(encoder(sketch))).sample.square().mean()
        )

    return loss


def shared_branches(problem: Problem, unet: ColorizationUNet, encoder: SketchEncoder) -> Loss:
    """The loss as the trainer computes it."""
    latents, timesteps, sketch = problem.latents(), problem.timesteps(), problem.sketch()
    unrelated, blocks = problem.reference(seed=6), problem.config.gram_block_ids

    def loss() -> torch.Tensor:
        given = problem.conditioning(encoder(sketch))
        assert given.reference_tokens is not None
        both = replace(given, reference_tokens=torch.cat([given.reference_tokens, unrelated]))
        out = unet(latents, timesteps, both, capture=blocks, keep_branches=1)
        gram = sum(gram_loss(*out.blocks[b].split(problem.batch)[::-1]) for b in blocks)
        return out.sample.square().mean() + gram

    return loss


def _two_passes(
    problem: Problem, unet: ColorizationUNet, encoder: SketchEncoder, weight: float = 1.0
) -> Loss:
    """The same loss from two whole passes of our model, nothing shared: each encodes the sketch."""
    latents, timesteps, sketch = problem.latents(), problem.timesteps(), problem.sketch()
    unrelated, blocks = problem.reference(seed=6), problem.config.gram_block_ids

    def loss() -> torch.Tensor:
        given = problem.conditioning(encoder(sketch))
        aligned = unet(latents, timesteps, given, capture=blocks)
        changed = replace(problem.conditioning(encoder(sketch)), reference_tokens=unrelated)
        misaligned = unet(latents, timesteps, changed, capture=blocks)
        gram = sum(gram_loss(misaligned.blocks[b], aligned.blocks[b]) for b in blocks)
        return aligned.sample.square().mean() + weight * gram

    return loss


def _step(loss: Loss, modules: nn.Module) -> Loss:
    def step() -> torch.Tensor:
        modules.zero_grad()
        value = loss()
        value.backward()
        return value.detach()

    return step


def _gradients(step: Loss, modules: nn.Module) -> torch.Tensor:
    step()
    return torch.cat([p.grad.flatten() for p in modules.parameters() if p.grad is not None])


def as_published(problem: Problem) -> tuple[Loss, nn.Module]:
    """Stock diffusers blocks, every one recomputed in the backward pass, outputs taken by hooks.

    Returns:
        The step, and the modules that it gives gradients.
    """
    same = problem.denoiser()
    with torch.device(problem.device):
        stock = UNet2DConditionModel.from_config(same.config)
    assert isinstance(stock, UNet2DConditionModel)
    stock.load_state_dict(same.state_dict())
    problem.placed(stock).train()
    stock.enable_gradient_checkpointing()
    encoder = problem.sketch_encoder()
    latents, timesteps, sketch = problem.latents(), problem.timesteps(), problem.sketch()
    numbers, captured = problem.config.gram_block_ids, {}
    blocks = [m for m in _in_network_order(stock) if isinstance(m, BasicTransformerBlock)]
    for number in numbers:

        def keep(_: nn.Module, __: object, output: torch.Tensor, number: int = number) -> None:
            captured[number] = output

        blocks[number - 1].register_forward_hook(keep)

    features: list[torch.Tensor] = []

    def add_first(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        return output + features[0]

    stock.conv_in.register_forward_hook(add_first)
    for level, block in enumerate(stock.down_blocks, start=1):

        def add(_: nn.Module, __: object, output: tuple, level: int = level) -> tuple:
            summed = output[0] + features[level]
            return summed, (*output[1][:-1], summed)

        block.register_forward_hook(add)

    def forward(tokens: torch.Tensor) -> tuple:
        added = problem.conditioning(None).added_cond
        return stock(latents, timesteps, tokens, class_labels=added).sample, dict(captured)

    def loss() -> torch.Tensor:
        features[:] = encoder(sketch)
        aligned, first = forward(problem.reference())
        _, second = forward(problem.reference(seed=6))
        gram = latents.new_zeros(())
        for number in numbers:
            difference = gram_matrix(second[number]) - gram_matrix(first[number].detach())
            gram = gram + difference.square().mean()
        return aligned.square().mean() + gram

    modules = nn.ModuleList([stock, encoder])
    return _step(loss, modules), modules


def _in_network_order(unet: UNet2DConditionModel) -> Iterator[nn.Module]:
    for part in (unet.down_blocks, unet.mid_block, unet.up_blocks):
        yield from part.modules()
