"""Line sketches: every border is there, in every hand, reproducibly."""

from __future__ import annotations

import numpy as np
import pytest

from nurie.data.characters import Character, load_characters
from nurie.data.lines import LINE_STYLES, label_borders, make_sketch, sketch_from_image, xdog
from nurie.data.palettes import random_palette
from nurie.data.recolour import Rendered, recolour


@pytest.fixture(scope="module")
def rendered() -> list[Rendered]:
    chosen: list[Character] = load_characters()[::97]
    return [
        recolour(character, random_palette(np.random.default_rng(seed), character.roles))
        for seed, character in enumerate(chosen)
    ]


@pytest.mark.parametrize("style", LINE_STYLES)
def test_sketches_are_dark_lines_on_white(rendered: list[Rendered], style: str) -> None:
    for seed, picture in enumerate(rendered):
        sketch = make_sketch(picture, style, np.random.default_rng(seed))
        assert sketch.shape == (128, 128)
        assert sketch.dtype == np.float32
        assert sketch.min() >= 0
        assert sketch.max() <= 1
        assert np.median(sketch) > 0.95
        assert 0.02 < (sketch < 0.6).mean() < 0.35


@pytest.mark.parametrize("style", LINE_STYLES)
def test_a_seed_gives_one_sketch(rendered: list[Rendered], style: str) -> None:
    first, again, other = (
        make_sketch(rendered[0], style, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


# The label-based hands know every border; the others see only what the colours show.
@pytest.mark.parametrize(
    ("style", "share"),
    [
        ("ink", 0.99),
        ("boundary", 0.99),
        ("pencil", 0.97),
        ("xdog", 0.8),
        ("bilateral_xdog", 0.8),
    ],
)
def test_part_borders_are_drawn(rendered: list[Rendered], style: str, share: float) -> None:
    for seed, picture in enumerate(rendered):
        sketch = make_sketch(picture, style, np.random.default_rng(seed))
        lines = (1 - label_borders(picture.character.labels)).reshape(128, 2, 128, 2)
        border = lines.min(axis=(1, 3)) == 0
        darkest_near = _minimum_3x3(sketch)
        assert (darkest_near[border] < 0.8).mean() > share


def test_sketches_of_labels_do_not_depend_on_colours(rendered: list[Rendered]) -> None:
    character = rendered[0].character
    other = recolour(character, random_palette(np.random.default_rng(99), character.roles))
    for style in LINE_STYLES:
        sketches = [make_sketch(p, style, np.random.default_rng(0)) for p in (rendered[0], other)]
        assert np.array_equal(*sketches) == ("xdog" not in style)


def test_bilateral_xdog_draws_edges_and_no_texture() -> None:
    rng = np.random.default_rng(0)
    picture = np.full((128, 128, 3), 200, np.uint8)
    picture[:, 64:] = 60
    noisy = np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
    plain, smooth = (
        sketch_from_image(noisy, style, np.random.default_rng(1))
        for style in ("xdog", "bilateral_xdog")
    )
    assert smooth[:, 62:66].min(axis=1).max() < 0.6
    assert (1 - smooth[:, :56]).mean() < 0.2 * (1 - plain[:, :56]).mean()


def test_xdog_leaves_flat_areas_white_however_dark() -> None:
    assert xdog(np.full((32, 32, 3), 10, np.uint8)).min() == 1
    edge = np.full((32, 32, 3), 255, np.uint8)
    edge[:, 16:] = 0
    sketch = xdog(edge)
    assert sketch[:, 16:18].max() < 0.3
    assert sketch[:, :10].min() == 1


def test_xdog_sees_black_lines_on_dark_colours() -> None:
    picture = np.full((32, 32, 3), (60, 35, 25), np.uint8)
    picture[:, 15:18] = 8
    assert xdog(picture)[:, 15:18].min(axis=1).max() < 0.3


def test_xdog_sees_borders_between_colours_of_equal_lightness() -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, :16] = (200, 60, 60)
    picture[:, 16:] = (0, 128, 128)
    assert xdog(picture).min() < 0.3


@pytest.mark.parametrize("style", LINE_STYLES)
def test_any_picture_can_be_drawn(style: str) -> None:
    picture = np.full((48, 80, 3), 240, np.uint8)
    picture[12:36, 20:60] = (30, 90, 160)
    sketch = sketch_from_image(picture, style, np.random.default_rng(0))
    assert sketch.shape == (48, 80)
    assert sketch.min() < 0.6
    assert sketch[24, 40] > 0.9


def test_errors_name_the_value(rendered: list[Rendered]) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="unknown line style 'crayon'; choose from ink"):
        make_sketch(rendered[0], "crayon", rng)
    with pytest.raises(ValueError, match="float64"):
        sketch_from_image(np.zeros((8, 8, 3)), "xdog", rng)


def _minimum_3x3(picture: np.ndarray) -> np.ndarray:
    padded = np.pad(picture, 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    return windows.min(axis=(2, 3))
