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
    hashes = [difference_hash(image) for image in [*pictures, CHANGES[change](pictures[7])]]
    assert near_duplicate_groups(hashes, 8) == [*range(20), 7]


def test_two_small_figures_on_paper_are_two_pictures() -> None:
    figures = []
    for left in (40, 180):
        paper = np.full((300, 300, 3), 255, np.uint8)
        cv2.circle(paper, (left, 150), 30, (200, 30, 30), -1)
        figures.append(difference_hash(paper))
    assert near_duplicate_groups(figures, 15) == [0, 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 15))
def test_the_search_finds_what_comparing_all_finds(seed: int, max_distance: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.random((4, HASH_BITS)) < 0.5
    copies = bits[rng.integers(0, 4, 24)]
    flips = rng.random(copies.shape) < rng.random((24, 1)) * 0.06
    hashes = [np.packbits(row).tobytes() for row in copies ^ flips]
    numbers = [int.from_bytes(value) for value in hashes]
    pairs = [
        (i, j) for i in range(24) for j in range(i) if _alike(numbers[i], numbers[j], max_distance)
    ]
    assert near_duplicate_groups(hashes, max_distance) == connected(24, pairs)


def test_connected_follows_chains() -> None:
    assert connected(6, [(4, 5), (1, 2), (2, 4)]) == [0, 1, 1, 3, 1, 1]


def test_distances_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 15, got 16"):
        near_duplicate_groups([], 16)
