"""Training stages: what they train, what they leave alone, and their schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D

from nurie.config.train import (
    BackboneStage,
    BackgroundStage,
    FinetuneStage,
    ForegroundStage,
    GramConfig,
    RefineStage,
    StageBase,
    TimestepConfig,
)
from nurie.models.autoencoder import build_vae, encode_latents
from nurie.training.batch import TrainBatch, make_batch
from nurie.training.draws import draw_step, draw_timesteps, row_generators
from nurie.training.stages import TrainingStage, build_stage
from tests.tiny import normal, tiny_config, tiny_model

BATCH = 4


def columns(kind: str) -> Mapping[str, torch.Tensor]:
    reference = tiny_config().reference
    generator = torch.Generator().manual_seed(5)

    def pixels(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    patches = (reference.image_size // reference.patch_size) ** 2 + 1
    tokens = {
        "image_tokens": normal(BATCH, patches, reference.image_token_dim, seed=1),
        "tagger_tokens": normal(BATCH, reference.num_tokens, reference.tagger_token_dim, seed=2),
    }
    if kind in ("backbone", "refine", "finetune"):
        tokens |= {f"mismatched_{name}": value.flip(0) for name, value in tokens.items()}
        extra = {}
    else:
        extra = {
            "image": pixels(BATCH, 64, 64, 3),
            "reference_image": pixels(BATCH, 64, 64, 3),
            "background_image": pixels(BATCH, 64, 64, 3),
            "reference_mask": pixels(BATCH, 64, 64),
        }
    return {
        "latents": normal(BATCH, 4, 8, 8, seed=3).half(),
        "sketch": pixels(BATCH, 64, 64),
        "foreground_mask": pixels(BATCH, 64, 64),
        "original_area": torch.full((BATCH,), 4096.0),
        "aesthetic_score": torch.full((BATCH,), 7.0),
        **tokens,
        **extra,
    }


def stage_and_batch(settings: StageBase) -> tuple[TrainingStage, TrainBatch]:
    torch.manual_seed(0)
    vae = build_vae(tiny_config().vae)
    stage = build_stage(tiny_model(), settings, lambda pixels: encode_latents(vae, pixels))
    kind = settings.kind  # type: ignore[attr-defined]
    return stage, make_batch(columns(kind), tiny_config().unet.added_embedding_dim)


BACKBONE_PARTS = {"unet", "sketch_encoder", "reference_projection"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (BackboneStage(steps=10), BACKBONE_PARTS),
        (RefineStage(steps=10), BACKBONE_PARTS),
        (FinetuneStage(steps=10), {"lora"}),
        (ForegroundStage(steps=10), {"foreground_adapter"}),
        (BackgroundStage(steps=10), {"background_encoder", "lora"}),
    ],
)
def test_a_stage_trains_exactly_its_parts(settings: StageBase, expected: set[str]) -> None:
    stage, batch = stage_and_batch(settings)

    def part(name: str) -> str:
        return "lora" if ".lora_" in name else name.split(".")[0]

    trained = dict(stage.trained_parameters())
    assert {part(name) for name in trained} == expected
    everything = {n for n, _ in stage.model.named_parameters() if part(n) in expected}
    assert set(trained) == everything
    before = {n: p.clone() for n, p in stage.model.named_parameters()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    stage(batch, 9, row_generators(0, "test", 0, range(BATCH))).total.backward()
    optimizer.step()
    changed = {n for n, p in stage.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed <= set(trained)
    assert {part(name) for name in changed} == expected


def test_gram_loss_starts_with_its_step() -> None:
    settings = BackboneStage(steps=9, gram=GramConfig(start_fraction=1 / 3))
    stage, batch = stage_and_batch(settings)
    names = [f"loss/gram_block_{b}" for b in tiny_config().gram_block_ids]
    early = stage(batch, 2, row_generators(0, "backbone", 2, range(BATCH)))
    late = stage(batch, 3, row_generators(0, "backbone", 2, range(BATCH)))
    assert not set(names) & set(early.parts)
    assert all(late.parts[name] > 0 for name in names)
    # Same draws: the aligned branch's loss does not depend on the misaligned branch.
    torch.testing.assert_close(late.parts["loss/diffusion"], early.parts["loss/diffusion"])
    gram = sum(late.parts[name] for name in names)
    torch.testing.assert_close(late.total.detach(), late.parts["loss/diffusion"] + gram)


def test_dropping_every_reference_makes_both_branches_equal() -> None:
    settings = BackboneStage(
        steps=1, conditioning_dropout_prob=1.0, gram=GramConfig(start_fraction=0)
    )
    stage, batch = stage_and_batch(settings)
    parts = stage(batch, 0, row_generators(0, "backbone", 0, range(BATCH))).parts
    assert parts["dropped_references"] == 1
    for block in tiny_config().gram_block_ids:
        assert parts[f"loss/gram_block_{block}"] == pytest.approx(0, abs=1e-9)


def test_timesteps_follow_their_density() -> None:
    def draw(config: TimestepConfig) -> torch.Tensor:
        return draw_timesteps(config, 20_000, 1000, torch.Generator().manual_seed(0)).float()

    uniform = draw(TimestepConfig())
    assert (uniform.min(), uniform.max()) == (0, 999)
    assert uniform.mean().item() == pytest.approx(499.5, abs=6)
    noisy = draw(TimestepConfig(density="logit_normal", logit_mean=1.5, logit_std=1.5))
    assert noisy.max() <= 999
    assert noisy.median().item() == pytest.approx(1000 / (1 + math.exp(-1.5)), abs=8)
    # One standard deviation below the mean lies at half of the schedule.
    assert (noisy < 500).float().mean().item() == pytest.approx(0.159, abs=0.01)


def test_draws_repeat_for_the_same_step_and_row_only() -> None:
    schedule = torch.linspace(0.999, 0.01, 1000)
    latents = normal(1, 4, 8, 8).expand(8, -1, -1, -1)

    def noise(step: int, rows: range) -> torch.Tensor:
        generators = row_generators(7, "backbone", step, rows)
        rows_of = latents[: len(rows)]
        return draw_step(rows_of, schedule, BackboneStage(steps=1), generators).noisy_latents

    whole = noise(3, range(8))
    # However many workers share a batch, a sample's numbers are its own.
    assert torch.equal(torch.cat([noise(3, range(5)), noise(3, range(5, 8))]), whole)
    assert not torch.equal(noise(4, range(8)), whole)
    assert not torch.equal(whole[0], whole[1])


def test_dropout_rates() -> None:
    schedule = torch.linspace(0.999, 0.01, 1000)
    generators = row_generators(0, "backbone", 0, range(4000))
    draws = draw_step(normal(4000, 1, 1, 1), schedule, BackboneStage(steps=1), generators)
    assert draws.keep_reference.mean().item() == pytest.approx(0.8, abs=0.03)
    for keep in draws.keep_sketch:
        assert keep.mean().item() == pytest.approx(0.9, abs=0.03)
    together = (draws.keep_sketch[0] * draws.keep_sketch[1]).mean().item()
    assert together == pytest.approx(0.81, abs=0.03)


@pytest.mark.parametrize("kind", [RefineStage, ForegroundStage, BackgroundStage])
def test_recomputed_blocks_give_the_same_gradients(kind: type) -> None:
    """Every block is computed twice, none three times, and nothing else changes."""
    settings = kind(steps=1)
    gradients = []
    calls = []
    for recompute in (False, True):
        stage, batch = stage_and_batch(settings)
        if recompute:
            stage.model.enable_gradient_checkpointing()
        counts: dict[torch.nn.Module, int] = {}
        for module in stage.modules():
            if isinstance(module, ResnetBlock2D | FeedForward):
                module.register_forward_pre_hook(
                    lambda m, *_, counts=counts: counts.update({m: counts.get(m, 0) + 1})
                )
        stage(batch, 0, row_generators(0, "test", 0, range(BATCH))).total.backward()
        gradients.append({n: p.grad for n, p in stage.trained_parameters()})
        calls.append(list(counts.values()))
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
    assert set(calls[0]) == {1}
    assert set(calls[1]) <= {1, 2}
    assert 2 in calls[1]
