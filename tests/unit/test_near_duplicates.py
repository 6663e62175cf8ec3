"""Near-duplicates: what is one picture, what is not, and the search against comparing all."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nurie.data.near_duplicates import (
    HASH_BITS,
    _alike,
    connected,
    difference_hash,
    near_duplicate_groups,
)


def picture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    return cv2.resize(coarse, (300, 260), interpolation=cv2.INTER_CUBIC)


def hashes_of(pictures: list[np.ndarray]) -> np.ndarray:
    return np.stack([np.frombuffer(difference_hash(image), np.uint8) for image in pictures])


def jpeg(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 1)


CHANGES = {
    "smaller": lambda image: cv2.resize(image, (100, 87), interpolation=cv2.INTER_AREA),
    "jpeg": jpeg,
    "darker": lambda image: (image * 0.8).astype(np.uint8),
    "cropped": lambda image: image[2:-2, 2:-2],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_among_others(change: str) -> None:
    pictures = [picture(seed) for seed in range(20)]
    hashes = hashes_of([*pictures, CHANGES[change](pictures[7])])
    assert near_duplicate_groups(hashes, 8).tolist() == [*range(20), 7]


def test_two_small_figures_on_paper_are_two_pictures() -> None:
    figures = []
    for left in (40, 180):
        paper = np.full((300, 300, 3), 255, np.uint8)
        cv2.circle(paper, (left, 150), 30, (200, 30, 30), -1)
        figures.append(paper)
    assert near_duplicate_groups(hashes_of(figures), 15).tolist() == [0, 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 15))
def test_the_search_finds_what_comparing_all_finds(seed: int, max_distance: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.random((4, HASH_BITS)) < 0.5
    copies = bits[rng.integers(0, 4, 24)]
    flips = rng.random(copies.shape) < rng.random((24, 1)) * 0.06
    hashes = np.packbits(copies ^ flips, axis=1)
    words = hashes.view(np.uint64)
    i, j = np.meshgrid(np.arange(24), np.arange(24))
    alike = _alike(words[i], words[j], max_distance)
    expected = connected(24, i[alike], j[alike])
    assert np.array_equal(near_duplicate_groups(hashes, max_distance), expected)


def test_a_copy_is_found_among_many_flat_pictures() -> None:
    """Most share their first rows; the search compares with a few neighbours only."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (3000, HASH_BITS // 8), np.uint8)
    hashes[:, :24] = 0
    hashes[2999] = hashes[0]
    hashes[2999, 26] ^= 4
    groups = near_duplicate_groups(hashes, 8)
    assert groups[2999] == 0
    assert len(np.unique(groups)) == 2999


def test_connected_follows_chains() -> None:
    pairs = np.array([(4, 5), (1, 2), (2, 4)]).T
    assert connected(6, *pairs).tolist() == [0, 1, 1, 3, 1, 1]


def test_distances_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 15, got 16"):
        near_duplicate_groups(hashes_of([picture(0)]), 16)
