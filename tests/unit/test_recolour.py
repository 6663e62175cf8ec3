"""Recolouring gives the exact truth."""

from __future__ import annotations

import numpy as np
import pytest

from nurie.data.characters import ROLES, Character, load_characters
from nurie.data.palettes import random_palette
from nurie.data.recolour import recolour


@pytest.fixture(scope="module")
def characters() -> list[Character]:
    return load_characters()[::97]


def test_a_roles_pixels_have_the_palettes_colour(characters: list[Character]) -> None:
    for seed, character in enumerate(characters):
        palette = random_palette(np.random.default_rng(seed), character.roles)
        palette.pop("background2", None)
        size = character.labels.shape[0]
        rendered = recolour(character, palette, size)
        for index, role in enumerate(character.roles):
            inside = (rendered.labels == index) & (rendered.ink == 0)
            expected = np.round(np.array(palette[role]) * 255)
            assert np.abs(rendered.image[inside] - expected).max(initial=0) <= 1


def test_shrinking_keeps_colours_inside_regions(characters: list[Character]) -> None:
    character = characters[0]
    palette = random_palette(np.random.default_rng(3), character.roles)
    rendered = recolour(character, palette, 128)
    hair = ROLES.index("hair")
    blocks = (character.labels == hair) & (character.ink == 0)
    inside = blocks.reshape(128, 2, 128, 2).all(axis=(1, 3))
    assert inside.sum() > 100
    expected = np.round(np.array(palette["hair"]) * 255)
    assert np.abs(rendered.image[inside] - expected).max() <= 1


def test_mask_is_the_labelled_part_and_solid_ink_has_the_ink_colour(
    characters: list[Character],
) -> None:
    character = characters[1]
    palette = random_palette(np.random.default_rng(0), character.roles)
    rendered = recolour(character, palette, 256)
    assert np.array_equal(rendered.mask == 255, rendered.labels > 0)
    assert set(np.unique(rendered.mask)) == {0, 255}
    solid = rendered.ink == 1
    assert solid.any()
    assert np.abs(rendered.image[solid] - np.array(palette["ink"]) * 255).max() <= 1


@pytest.mark.parametrize("size", [64, 100, 128, 160, 256, 384])
def test_sizes(characters: list[Character], size: int) -> None:
    palette = random_palette(np.random.default_rng(0), ROLES)
    rendered = recolour(characters[0], palette, size)
    assert rendered.image.shape == (size, size, 3)
    assert rendered.labels.shape == rendered.mask.shape == rendered.ink.shape == (size, size)
    assert rendered.ink.dtype == np.float32


def test_gradient_runs_from_the_first_to_the_second_colour(characters: list[Character]) -> None:
    palette = random_palette(np.random.default_rng(0), ROLES)
    palette |= {"background": (1.0, 0.0, 0.0), "background2": (0.0, 0.0, 1.0)}
    image = recolour(characters[0], palette, 128).image
    assert image[0, 0, 0] > 250
    assert image[0, 0, 2] < 5
    assert image[-1, 0, 2] > 250


def test_shading_darkens_hair_or_skin_only_and_follows_the_seed(
    characters: list[Character],
) -> None:
    character = characters[0]
    palette = random_palette(np.random.default_rng(1), ROLES)
    flat = recolour(character, palette, 256)
    first, again, other = (
        recolour(character, palette, 256, shading_probability=1, rng=np.random.default_rng(seed))
        for seed in (0, 0, 7)
    )
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)
    changed = (first.image != flat.image).any(axis=2)
    assert changed.any()
    shaded = [ROLES.index(role) for role in ("hair", "skin", "accessory")]
    assert np.isin(first.labels[changed], shaded).all()
    assert first.image[changed].mean() < flat.image[changed].mean()


def test_errors_name_the_value(characters: list[Character]) -> None:
    palette = random_palette(np.random.default_rng(0), ROLES)
    with pytest.raises(ValueError, match="got 4"):
        recolour(characters[0], palette, 4)
    with pytest.raises(ValueError, match="needs an rng"):
        recolour(characters[0], palette, 64, shading_probability=0.5)
    del palette["hair"]
    with pytest.raises(ValueError, match="lacks a colour for hair"):
        recolour(characters[0], palette, 64)
