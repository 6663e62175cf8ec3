"""Augmentation of the aligned reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nurie.config.data import ReferenceAugmentation
from nurie.data.augment import augment_reference, draw_augmentation

NOTHING = ReferenceAugmentation(
    max_rotation=0, max_shift=0, min_scale=1, erase_probability=0, flip_probability=0
)


def picture(seed: int, height: int = 48, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (height, width, 3), np.uint8)


@given(st.integers(0, 10_000), st.sampled_from([ReferenceAugmentation(), NOTHING]))
@settings(max_examples=60, deadline=None)
def test_result_is_another_picture_of_the_same_size(seed, config):
    image = picture(seed)
    before = image.copy()
    result = augment_reference(image, np.random.default_rng(seed), config)
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    assert not np.array_equal(result, image)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("flat", [0, 128])
def test_flat_pictures_change_too(flat):
    image = np.full((32, 32, 3), flat, np.uint8)
    assert not np.array_equal(augment_reference(image, np.random.default_rng(0), NOTHING), image)


def test_same_generator_gives_the_same_picture():
    image = picture(1)
    first, second = (
        augment_reference(image, np.random.default_rng(9), ReferenceAugmentation()) for _ in "ab"
    )
    assert np.array_equal(first, second)


def test_what_comes_into_view_is_white():
    config = ReferenceAugmentation(
        max_rotation=0, max_shift=0, min_scale=0.5, erase_probability=0, flip_probability=0
    )
    black = np.zeros((64, 64, 3), np.uint8)
    result = augment_reference(black, np.random.default_rng(3), config)
    assert (result[0] == 255).all()
    assert (result[32, 32] == 0).all()


def test_mask_follows_the_picture():
    image = np.full((64, 64, 3), 255, np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    image[20:44, 10:40], mask[20:44, 10:40] = 0, 255
    for seed in range(20):
        rng = np.random.default_rng(seed)
        augmentation = draw_augmentation(rng, ReferenceAugmentation(), 64, 64)
        dark = augmentation.apply(image)[..., 0] < 128
        moved = augmentation.apply_to_mask(mask)
        assert set(np.unique(moved)) <= {0, 255}
        # Linear and nearest sampling disagree along borders only.
        assert (dark != (moved == 255)).mean() < 0.04


def test_each_setting_changes_something():
    image, seen = picture(2), []
    for change in (
        {"max_rotation": 30.0},
        {"max_shift": 0.3},
        {"min_scale": 0.5},
        {"erase_probability": 1.0},
        {"flip_probability": 1.0},
    ):
        config = NOTHING.model_copy(update=change)
        seen.append(augment_reference(image, np.random.default_rng(4), config).tobytes())
    unchanged = augment_reference(image, np.random.default_rng(4), NOTHING).tobytes()
    assert len({*seen, unchanged}) == 6


def test_mirror_is_exact():
    config = NOTHING.model_copy(update={"flip_probability": 1.0})
    image = picture(5)
    result = augment_reference(image, np.random.default_rng(0), config)
    assert np.array_equal(result, image[:, ::-1])
