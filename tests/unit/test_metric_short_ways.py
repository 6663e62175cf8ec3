"""What the metrics compute once, by table or not at all must not change their numbers."""

from __future__ import annotations

import numpy as np
import pytest

from nurie.data.colour_names import srgb_to_lab
from nurie.evaluation.colour import (
    background_leak,
    bleeding,
    dominant_colours,
    palette_distance,
    region_errors,
    to_lab,
)
from nurie.evaluation.fidelity import as_float, ms_ssim_distance, similarity, ssim
from nurie.evaluation.lines import edges

SIZE = 48
ROLES = ("paper", "hair", "skin", "cloth")


def painting(seed: int) -> np.ndarray:
    """Four regions in colours of their own, with noise."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (4, 3))[labels()]
    return np.clip(colours + rng.normal(0, 25, colours.shape), 0, 255).astype(np.uint8)


def labels() -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return (2 * (rows > 20) + (columns > 26)).astype(np.uint8)


def test_lab_by_table_is_the_formula() -> None:
    every = np.arange(256**2, dtype=np.uint32).view(np.uint8).reshape(-1, 4)[None, :, :3].copy()
    assert np.array_equal(to_lab(every), srgb_to_lab(as_float(every)))


def test_both_similarities_in_one_pass_are_those_of_two() -> None:
    for seed in range(3):
        one, two = painting(seed), painting(seed + 10)
        both = similarity(one, two)
        assert both.ssim == pytest.approx(ssim(one, two), abs=1e-12)
        assert both.ms_ssim_distance == ms_ssim_distance(one, two)
    small = similarity(painting(0)[:12, :12], painting(1)[:12, :12])
    assert small.ms_ssim_distance == pytest.approx(1 - max(small.ssim, 0), abs=1e-12)


def test_bytes_and_floats_give_the_same_numbers() -> None:
    """Bytes go through tables and what is kept of them, floats through neither."""
    mask = labels() > 0
    for seed in (0, 1, 0):  # What is kept of one picture must not answer for another.
        one, two = painting(seed), painting(seed + 10)
        floats = one / 255.0, two / 255.0
        assert np.array_equal(edges(one), edges(floats[0]))
        for first_mask in (None, mask, ~mask, np.zeros_like(mask)):
            found = palette_distance(one, two, first_mask, mask)
            assert found == pytest.approx(palette_distance(*floats, first_mask, mask), rel=1e-6)
        found, expected = (region_errors(*pair, labels(), ROLES) for pair in ((one, two), floats))
        assert found.keys() == set(ROLES)
        for role, error in found.items():
            assert error == pytest.approx(expected[role], rel=1e-9)


def test_bleeding_is_what_a_look_at_every_pixel_finds() -> None:
    sketch = np.full((SIZE, SIZE), 255, np.uint8)
    sketch[::7] = 40
    region = labels()
    for seed in range(3):
        result = painting(seed)
        lab = to_lab(result)
        medians = [np.median(lab[region == number], axis=0) for number in range(4)]
        looked_at = bled = 0
        for row, column in np.ndindex(SIZE, SIZE):
            own = int(region[row, column])
            around = [
                set(
                    region[max(0, row - r) : row + r + 1, max(0, column - r) : column + r + 1]
                    .ravel()
                    .tolist()
                )
                for r in (1, 4)
            ]
            if sketch[row, column] < 128 or around[0] != {own}:
                continue
            for other in around[1] - {own}:
                if np.linalg.norm(medians[own] - medians[other]) > 10:
                    looked_at += 1
                    to_own, to_other = (
                        np.linalg.norm(lab[row, column] - medians[n]) for n in (own, other)
                    )
                    bled += to_other < to_own
        assert looked_at > 100
        assert bleeding(result, region, sketch) == pytest.approx(bled / looked_at, abs=1e-12)


def test_leak_is_what_a_look_at_every_pixel_finds() -> None:
    mask = labels() > 0
    inside = np.array(
        [
            [mask[max(0, r - 2) : r + 3, max(0, c - 2) : c + 3].all() for c in range(SIZE)]
            for r in range(SIZE)
        ]
    )
    seen = 0.0
    for seed in range(4):
        result, reference = painting(seed), painting(seed)[::-1]
        lab = to_lab(reference)
        figure, ground = dominant_colours(lab[mask]), dominant_colours(lab[~mask])
        away = [
            np.linalg.norm(to_lab(result)[inside][:, None] - colours, axis=2).min(axis=1)
            for colours in (figure, ground)
        ]
        expected = float(((away[1] <= 10) & (away[1] < away[0])).mean())
        found = background_leak(result, mask, reference, mask)
        assert found == pytest.approx(expected, abs=1e-12)
        seen += expected
    assert seen > 0
