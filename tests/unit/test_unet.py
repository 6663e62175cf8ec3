"""The denoiser: what it shares with diffusers, and its exact savings against plain passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from nurie.models.conditioning import (
    Conditioning,
    ForegroundConditioning,
    RegionMask,
    SplitAttention,
)
from nurie.models.unet import ColorizationUNet
from nurie.training.gram import gram_loss
from tests.tiny import normal, tiny_config, tiny_model

BATCH, TOKENS, WIDTH = 2, 16, 32


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def conditioning(model) -> Conditioning:
    sketch = normal(BATCH, 3, 64, 96, seed=1)
    with torch.no_grad():
        features = model.sketch_encoder(sketch)
    return Conditioning(normal(BATCH, 16, seed=2), features, normal(BATCH, TOKENS, WIDTH, seed=3))


LATENTS = normal(BATCH, 4, 8, 12, seed=4)
TIMESTEPS = torch.tensor([3, 700])


def test_equals_diffusers_without_sketch(model, conditioning: Conditioning) -> None:
    plain = UNet2DConditionModel.from_config(model.unet.config)
    plain.load_state_dict(model.unet.state_dict())
    with torch.no_grad():
        expected = plain(
            LATENTS,
            TIMESTEPS,
            conditioning.reference_tokens,
            class_labels=conditioning.added_cond,
        ).sample
        ours = model.unet(LATENTS, TIMESTEPS, replace(conditioning, sketch_features=None)).sample
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def dual_branch_plain(model, conditioning: Conditioning, other: torch.Tensor) -> torch.Tensor:
    """The paper's loss in two whole, separate passes."""
    blocks = tiny_config().gram_block_ids
    aligned = model.unet(LATENTS, TIMESTEPS, conditioning, capture=blocks)
    changed = replace(conditioning, reference_tokens=other)
    misaligned = model.unet(LATENTS, TIMESTEPS, changed, capture=blocks)
    gram = sum(gram_loss(misaligned.blocks[b], aligned.blocks[b]) for b in blocks)
    return aligned.sample.square().mean() + gram


def dual_branch_shared(model, conditioning: Conditioning, other: torch.Tensor) -> torch.Tensor:
    """The same loss with the trunk shared and the misaligned branch ending early."""
    blocks = tiny_config().gram_block_ids
    both = torch.cat([conditioning.reference_tokens, other])
    changed = replace(conditioning, reference_tokens=both)
    out = model.unet(LATENTS, TIMESTEPS, changed, capture=blocks, keep_branches=1)
    assert out.sample.shape == LATENTS.shape
    gram = sum(gram_loss(*out.blocks[b].split(BATCH)[::-1]) for b in blocks)
    return out.sample.square().mean() + gram


def test_dual_branch_savings_change_neither_loss_nor_gradients(model, conditioning) -> None:
    other = normal(BATCH, TOKENS, WIDTH, seed=9)
    results = []
    for compute in (dual_branch_plain, dual_branch_shared):
        model.unet.zero_grad()
        loss = compute(model, conditioning, other)
        loss.backward()
        gradients = [p.grad.clone() for p in model.unet.parameters()]
        results.append((loss.item(), gradients))
    (plain_loss, plain), (shared_loss, shared) = results
    assert shared_loss == pytest.approx(plain_loss, rel=1e-6)
    norm = torch.stack([g.norm() for g in plain]).norm()
    for ours, expected in zip(shared, plain, strict=True):
        assert (ours - expected).norm() <= 1e-5 * norm
    model.unet.zero_grad()


def test_null_branch_equals_a_reference_of_zeros(model, conditioning: Conditioning) -> None:
    zeros = replace(conditioning, reference_tokens=torch.zeros(BATCH, TOKENS, WIDTH))
    null = replace(conditioning, reference_tokens=None)
    with torch.no_grad():
        guided = model.unet(LATENTS, TIMESTEPS, replace(conditioning, num_null_branches=1)).sample
        expected = [model.unet(LATENTS, TIMESTEPS, c).sample for c in (conditioning, zeros, null)]
    torch.testing.assert_close(guided[:BATCH], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(guided[BATCH:], expected[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(expected[2], expected[1], rtol=1e-5, atol=1e-5)


def test_cached_reference_keys_give_the_same_prediction(model, conditioning) -> None:
    cached = replace(conditioning, cache={})
    with torch.no_grad():
        first = model.unet(LATENTS, TIMESTEPS, cached).sample
        assert cached.cache is not None and len(cached.cache) == 10
        again = model.unet(LATENTS + 1, TIMESTEPS, cached).sample
        expected = model.unet(LATENTS + 1, TIMESTEPS, conditioning).sample
    torch.testing.assert_close(again, expected)
    assert not torch.equal(first, again)


def test_exclusive_split_follows_the_mask(model, conditioning: Conditioning) -> None:
    one, two = conditioning.reference_tokens, normal(BATCH, TOKENS, WIDTH, seed=8)
    halves = torch.cat([one, two], dim=1)
    results = {}
    for name, value in (("all foreground", 1.0), ("all background", 0.0)):
        region = RegionMask(torch.full((BATCH, 1, 8, 12), value))
        split = replace(conditioning, reference_tokens=halves, split=SplitAttention(region))
        with torch.no_grad():
            results[name] = model.unet(LATENTS, TIMESTEPS, split).sample
    with torch.no_grad():
        alone = [
            model.unet(LATENTS, TIMESTEPS, replace(conditioning, reference_tokens=t)).sample
            for t in (one, two)
        ]
    torch.testing.assert_close(results["all foreground"], alone[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results["all background"], alone[1], rtol=1e-5, atol=1e-5)


def test_strength_zero_silences_the_reference(model, conditioning: Conditioning) -> None:
    with torch.no_grad():
        silent = model.unet(LATENTS, TIMESTEPS, replace(conditioning, reference_strength=0.0))
        null = model.unet(LATENTS, TIMESTEPS, replace(conditioning, reference_tokens=None))
    torch.testing.assert_close(silent.sample, null.sample, rtol=1e-5, atol=1e-5)


def test_foreground_injection_stays_inside_its_mask() -> None:
    model = tiny_model(adapters=True)
    adapter = model.foreground_adapter
    skips = [normal(BATCH, 16, 8, 12, seed=i) for i in range(2)]
    with torch.no_grad():
        features = adapter(LATENTS)
        half = torch.zeros(BATCH, 1, 8, 12)
        half[..., :6] = 1
        conditioning = ForegroundConditioning(features[-2:], RegionMask(half), adapter.injection)
        emb = normal(BATCH, 64)
        layers = torch.nn.ModuleList(adapter.injection.layers[-2:])
        injection = type(adapter.injection).__new__(type(adapter.injection))
        torch.nn.Module.__init__(injection)
        injection.layers = layers
        changed = injection(skips, emb, conditioning)
    for before, after in zip(skips, changed, strict=True):
        torch.testing.assert_close(after[..., 6:], before[..., 6:])
        assert (after[..., :6] - before[..., :6]).abs().min() > 0


def test_sdxl_has_the_paper_s_sizes() -> None:
    from nurie.config.model import ModelConfig

    config = ModelConfig(name="sdxl")
    with torch.device("meta"):
        unet = ColorizationUNet.build(config.unet, config.vae.latent_channels)
    assert sum(p.numel() for p in unet.parameters()) == pytest.approx(2.567e9, rel=0.01)
    blocks = [m for m in unet.modules() if type(m).__name__ == "BasicTransformerBlock"]
    assert len(blocks) == 70


def test_compiled_equals_eager(model, conditioning: Conditioning) -> None:
    """Traced as one graph, without breaks; the code generator would need a compiler."""
    guided = replace(conditioning, num_null_branches=1)
    compiled = torch.compile(model.unet.forward, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = model.unet(LATENTS, TIMESTEPS, guided).sample
        found = compiled(LATENTS, TIMESTEPS, guided).sample
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_nothing_stays_on_modules(model, conditioning: Conditioning) -> None:
    before = {name: set(vars(module)) for name, module in model.unet.named_modules()}
    with torch.no_grad():
        model.unet(LATENTS, TIMESTEPS, replace(conditioning, num_null_branches=1, cache={}))
    assert {name: set(vars(module)) for name, module in model.unet.named_modules()} == before
