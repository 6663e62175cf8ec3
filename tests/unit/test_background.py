"""Inputs of the background stage."""

from __future__ import annotations

import numpy as np

from nurie.data.background import bleach, composite, disturb_mask


def half_mask() -> np.ndarray:
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    return mask


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_bleaching_leaves_the_foreground_alone() -> None:
    image, mask = picture(0), half_mask()
    bleached = bleach(image, mask, 240)
    assert np.array_equal(bleached[mask == 255], image[mask == 255])
    assert (bleached[mask == 0] == 240).all()
    assert bleach(image[..., 0], mask, 240).shape == (32, 32)


def test_disturbed_masks_are_of_three_kinds() -> None:
    mask = half_mask()
    kinds = set()
    for seed in range(40):
        disturbed = disturb_mask(mask, np.random.default_rng(seed))
        assert set(np.unique(disturbed)) <= {0, 255}
        larger, smaller = (disturbed > mask).any(), (disturbed < mask).any()
        assert not (larger and smaller)
        kinds.add("larger" if larger else "smaller" if smaller else "same")
    assert kinds == {"larger", "smaller", "same"}  # the box of a square is the square
    again = [disturb_mask(mask, np.random.default_rng(3)) for _ in range(2)]
    assert np.array_equal(*again)


def test_composite_takes_each_side_from_its_picture() -> None:
    one, two, mask = picture(1), picture(2), half_mask()
    joined = composite(one, mask, two)
    assert np.array_equal(joined[12:20, 12:20], one[12:20, 12:20])
    assert np.array_equal(joined[:4], two[:4])
