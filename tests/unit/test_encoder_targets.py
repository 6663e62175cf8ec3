"""What the encoders learn from: shares and colours of cells, and unknowns that stay unknown."""

from __future__ import annotations

import numpy as np
import torch

from nurie.data.characters import ROLES
from nurie.data.tags import all_tags
from nurie.training.encoder_targets import encoder_batch
from nurie.training.optimizer import MuonAdamW
from nurie.training.pictures import INK_CLASS, TrainingPicture, training_pictures

HAIR, SKIN = ROLES.index("hair"), ROLES.index("skin")


def half_hair_half_skin() -> TrainingPicture:
    """Left half red hair, right half white skin, and one ink pixel."""
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, :8, 0], image[:, 8:] = 255, 255
    classes = np.full((16, 16), HAIR + 1, np.uint8)
    classes[:, 8:] = SKIN + 1
    image[0, 0], classes[0, 0] = 0, INK_CLASS
    colours = np.full((len(ROLES), 3), np.nan, np.float32)
    colours[HAIR], colours[SKIN] = (1, 0, 0), (1, 1, 1)
    return TrainingPicture(image, classes, colours, np.zeros(len(all_tags()), np.float32))


def test_cells_know_their_shares_and_the_colour_of_their_main_role():
    batch = encoder_batch([half_hair_half_skin()], side=2, rng=None)

    # Every second pixel counts: 16 of each cell, one of them ink in the first.
    assert batch.shares[0, 0, HAIR + 1] == 15 / 16
    assert batch.shares[0, 0, INK_CLASS] == 1 / 16
    assert batch.shares[0, 3, SKIN + 1] == 1
    torch.testing.assert_close(batch.role_colours[0, 0], torch.tensor([1.0, -1.0, -1.0]))
    torch.testing.assert_close(batch.role_colours[0, 1], torch.ones(3))
    assert batch.cell_colours[0, 0, 0] < 1  # the ink darkens the cell, not its main role
    torch.testing.assert_close(batch.palettes[0, HAIR], torch.tensor([1.0, -1.0, -1.0]))
    assert batch.palettes[0, 0].isnan().all()


def test_augmentation_moves_picture_and_targets_together():
    rng = np.random.default_rng(3)
    pictures = [half_hair_half_skin()] * 16

    batch = encoder_batch(pictures, side=2, rng=rng)

    only_hair = batch.shares[..., HAIR + 1] == 1
    assert only_hair.any()
    assert not only_hair.all()
    torch.testing.assert_close(
        batch.cell_colours[only_hair].mean(0), torch.tensor([1.0, -1.0, -1.0]), atol=0.1, rtol=0
    )


def test_pictures_are_seeded_and_unlabelled_ones_have_no_targets():
    first, again = training_pictures(1, 32), training_pictures(1, 32)
    pictures = [next(first) for _ in range(40)]
    assert all(np.array_equal(p.image, next(again).image) for p in pictures)

    unlabelled = [p for p in pictures if np.isnan(p.tags).all()]
    assert 0 < len(unlabelled) < len(pictures)
    batch = encoder_batch(unlabelled, side=2, rng=None)
    assert batch.shares.isnan().all()
    assert batch.palettes.isnan().all()
    assert not batch.cell_colours.isnan().any()


def test_optimizer_updates_all_weights_in_place():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3))
    network = network.to(memory_format=torch.channels_last)
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = MuonAdamW(network, 1e-2)

    network(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer.step(1e-2)

    assert all(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(p.grad is None for p in network.parameters())
