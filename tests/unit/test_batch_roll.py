"""The misaligned reference as the published code takes it: the neighbour's, from the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nurie.config.loader import ConfigError, load_config
from nurie.config.train import BackboneStage, GramConfig
from nurie.models.conditioning import Conditioning
from nurie.training.draws import draw_step, row_generators
from nurie.training.gram import gram_loss
from tests.unit.test_stages import BATCH, stage_and_batch

ROOT = Path(__file__).parents[2]
WEIGHT = 1e3
"""Makes the small loss of a small model count in the gradients."""
ROLL = GramConfig(misaligned="batch_roll", start_fraction=0, weight=WEIGHT)
GENERATORS = (0, "backbone", 0, range(BATCH))


def test_the_roll_equals_two_passes_by_hand() -> None:
    """Loss and gradients of two whole passes, the second with the neighbours' dropped tokens."""
    settings = BackboneStage(steps=1, gram=ROLL, conditioning_dropout_prob=0.5)
    stage, batch = stage_and_batch(settings)
    out = stage(batch, 0, row_generators(*GENERATORS))
    out.total.backward()
    found = {name: p.grad.clone() for name, p in stage.trained_parameters() if p.grad is not None}
    stage.zero_grad()

    model = stage.model
    draws = draw_step(batch.latents, stage.alphas_cumprod, settings, row_generators(*GENERATORS))
    assert 0 < draws.keep_reference.sum() < BATCH  # A dropped one meets one that is kept.
    tokens = model.reference_projection(batch.image_tokens[:BATCH], batch.tagger_tokens[:BATCH])
    aligned = tokens * draws.keep_reference[:, None, None]
    neighbours = torch.stack([aligned[row - 1] for row in range(BATCH)])
    features = draws.drop_sketch(model.sketch_encoder(batch.sketch))
    blocks = model.config.gram_block_ids
    first, second = (
        model.unet(
            draws.noisy_latents,
            draws.timesteps,
            Conditioning(batch.added_cond, features, each),
            capture=blocks,
        )
        for each in (aligned, neighbours)
    )
    losses = [gram_loss(second.blocks[block], first.blocks[block].detach()) for block in blocks]
    for block, loss in zip(blocks, losses, strict=True):
        assert loss > 1e-7
        torch.testing.assert_close(out.parts[f"loss/gram_block_{block}"], loss.detach())
    (stage.diffusion_loss(first.sample, draws) + WEIGHT * sum(losses)).backward()
    for name, parameter in stage.trained_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_the_sampled_reference_is_another_loss() -> None:
    grams = (ROLL, GramConfig(start_fraction=0))
    stages = [stage_and_batch(BackboneStage(steps=1, gram=gram)) for gram in grams]
    one, two = (stage(batch, 0, row_generators(*GENERATORS)).parts for stage, batch in stages)
    name = f"loss/gram_block_{stages[0][0].model.config.gram_block_ids[0]}"
    assert not torch.isclose(one[name], two[name], rtol=0.1)
    torch.testing.assert_close(one["loss/diffusion"], two["loss/diffusion"])


def test_without_weight_no_misaligned_branch_takes_part() -> None:
    """Training without the Gram loss and without the misaligned branch are the same."""
    gradients = []
    for cut in (False, True):
        stage, batch = stage_and_batch(BackboneStage(steps=1, gram=GramConfig(weight=0)))
        if cut:
            rows = {"image_tokens": batch.image_tokens[:BATCH]}
            rows["tagger_tokens"] = batch.tagger_tokens[:BATCH]
            batch = type(batch)(**vars(batch) | rows)
        stage(batch, 0, row_generators(*GENERATORS)).total.backward()
        gradients.append({name: p.grad for name, p in stage.trained_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name])


def test_a_sample_is_never_its_own_neighbour() -> None:
    file = ROOT / "configs/train/nano-from-scratch.yaml"
    roll = {"stages.backbone.gram.misaligned": "batch_roll"}
    load_config(file, roll | {"stages.backbone.batch_size": 4})
    with pytest.raises(ConfigError, match="leave one its own neighbour"):
        load_config(file, roll | {"stages.backbone.batch_size": 3})
    with pytest.raises(ConfigError, match="2 samples at a time on 2 workers"):
        load_config(
            file,
            roll
            | {"stages.backbone.batch_size": 4, "stages.backbone.gradient_accumulation_steps": 2},
        )
