"""The benchmark of disentanglement: what it must say of copying, ignoring and the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from nurie.data.characters import load_characters
from nurie.data.lines import make_sketch
from nurie.data.palettes import random_palette
from nurie.data.recolour import recolour
from nurie.evaluation.alterations import ALTERATIONS
from nurie.evaluation.colour import delta_e, palette_distance
from nurie.evaluation.disentanglement import (
    Shape,
    change_of,
    colour_score,
    combined,
    entanglement,
    score_swaps,
    shape_score,
)
from nurie.evaluation.measure import Reference
from nurie.evaluation.peers import PEERS


@dataclass(frozen=True, eq=False)
class Scene:
    """One character in the palettes of four others."""

    sketch: np.ndarray
    mask: np.ndarray
    references: list[Reference]
    truths: list[np.ndarray]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    characters = [one for one in load_characters() if one.split == "test"]
    rng = np.random.default_rng(0)
    made = []
    for number in range(4):
        subject = characters[3 * number]
        references, truths = [], []
        for other in (characters[3 * number + 5 + 7 * k] for k in range(4)):
            palette = random_palette(rng, tuple({*subject.roles, *other.roles}))
            given, truth = recolour(other, palette), recolour(subject, palette)
            references.append(Reference(given.image, given.mask > 0))
            truths.append(truth.image)
        sketch = (make_sketch(truth, "ink", rng) * 255).astype(np.uint8)
        made.append(Scene(sketch, truth.mask > 0, references, truths))
    return made


@pytest.fixture(scope="module")
def scores(scenes: list[Scene]) -> dict[str, dict[str, float]]:
    """Mean scores of the truth, of copying the reference and of ignoring it."""
    answers = {
        "truth": [(s.truths, s) for s in scenes],
        "copy": [([r.image for r in s.references], s) for s in scenes],
        "ignore": [([s.truths[0]] * 4, s) for s in scenes],
    }
    means = {}
    for name, sets in answers.items():
        every = [score_swaps(results, s.references, s.mask) for results, s in sets]
        means[name] = {key: float(np.mean([one[key] for one in every])) for key in every[0]}
    return means


def test_copying_is_worst_on_shape(scores) -> None:
    assert scores["copy"]["shape_score"] == 0.0
    assert scores["truth"]["shape_score"] > 0.85
    assert scores["ignore"]["shape_score"] == 1.0
    for part in ("edges", "lines", "segments"):
        assert scores["copy"][f"change/{part}"] > 3 * scores["truth"][f"change/{part}"]


def test_ignoring_is_worst_on_colour(scores) -> None:
    assert scores["ignore"]["colour_score"] == pytest.approx(0.0, abs=1e-9)
    assert scores["ignore"]["retrieval"] == pytest.approx(0.25)
    assert scores["ignore"]["margin"] == pytest.approx(0.0, abs=1e-9)
    assert scores["truth"]["colour_score"] > 0.6


def test_the_truth_is_best_over_all(scores) -> None:
    assert scores["copy"]["disentanglement"] == pytest.approx(0.0, abs=1e-9)
    assert scores["ignore"]["disentanglement"] == pytest.approx(0.0, abs=1e-9)
    assert scores["truth"]["disentanglement"] > 0.7


def test_a_little_copying_is_worse_than_none_and_better_than_much(scenes) -> None:
    scene = scenes[0]
    values = []
    for share in (0.0, 0.25, 0.6):
        mixed = [
            ((1 - share) * truth + share * reference.image).astype(np.uint8)
            for truth, reference in zip(scene.truths, scene.references, strict=True)
        ]
        values.append(shape_score(mixed, [r.image for r in scene.references]))
    assert values[0] > values[1] > values[2]


def test_order_and_mirroring_change_nothing(scenes) -> None:
    scene = scenes[1]
    once = score_swaps(scene.truths, scene.references, scene.mask)
    turned = score_swaps(scene.truths[::-1], scene.references[::-1], scene.mask)
    assert turned == pytest.approx(once)
    mirrored = score_swaps(
        [np.ascontiguousarray(t[:, ::-1]) for t in scene.truths],
        [
            Reference(np.ascontiguousarray(r.image[:, ::-1]), r.mask[:, ::-1])
            for r in scene.references
            if r.mask is not None
        ],
        scene.mask[:, ::-1],
    )
    # Canny and the difference of Gaussians are symmetric up to a pixel here and there.
    assert mirrored == pytest.approx(once, abs=0.02)


def test_colours_may_fall_together_without_a_change_of_segments() -> None:
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[:, :20], picture[:, 20:40] = (200, 30, 30), (30, 60, 200)
    merged = picture.copy()
    merged[:, 20:40] = (200, 30, 30)
    moved = picture.copy()
    moved[20:40] = (30, 200, 30)
    change, other = (change_of(Shape.of(picture), Shape.of(image)) for image in (merged, moved))
    assert change.segments == 0.0
    assert other.segments > 0.3
    assert change_of(Shape.of(picture), Shape.of(picture)) == (0.0, 0.0, 0.0)


def test_the_numbers_by_hand() -> None:
    red, blue = (np.full((32, 32, 3), rgb, np.uint8) for rgb in ((220, 20, 20), (20, 20, 220)))
    references = [Reference(red), Reference(blue)]
    assert colour_score([red, blue], references, None) == (1.0, 1.0, 1.0)
    assert colour_score([blue, red], references, None) == (0.0, -1.0, 0.0)
    assert colour_score([red, red], references, None) == (0.5, 0.0, 0.0)
    assert combined(0.5, 1.0) == pytest.approx(2 / 3)
    assert combined(0.0, 0.0) == 0.0
    with pytest.raises(ValueError, match="1 results of 2"):
        colour_score([red], references, None)


# Altered references


def test_alterations_move_shapes_and_keep_the_figures_colours(scenes) -> None:
    reference = scenes[0].references[0]
    rng = np.random.default_rng(0)
    for name, alter in ALTERATIONS.items():
        altered = alter(reference, rng)
        assert altered.image.shape == reference.image.shape
        assert entanglement(reference.image, altered.image) > 0.15, name
        if name not in ("text", "flat"):
            args = (altered.image, reference.image, altered.mask, reference.mask)
            assert palette_distance(*args) < 3, name
    again = ALTERATIONS["noise"](reference, np.random.default_rng(1))
    same = ALTERATIONS["noise"](reference, np.random.default_rng(1))
    np.testing.assert_array_equal(again.image, same.image)
    assert entanglement(reference.image, reference.image) == 0.0


# Simple colourings


@pytest.mark.parametrize("name", PEERS)
def test_peers_keep_the_lines_and_take_colours_of_the_reference(name, scenes) -> None:
    scene = scenes[0]
    errors = {}
    for number in (0, 1):
        made = PEERS[name](scene.sketch, scene.references[number].image)
        assert made.shape == (*scene.sketch.shape, 3)
        assert made.dtype == np.uint8
        assert (made <= scene.sketch[..., None]).all()
        errors[number] = delta_e(made, scene.truths[0]).mean()
        again = PEERS[name](scene.sketch, scene.references[number].image)
        np.testing.assert_array_equal(made, again)
    assert errors[0] < errors[1]


def test_palette_transfer_paints_regions_with_single_colours() -> None:
    sketch = np.full((64, 64), 255, np.uint8)
    sketch[10:54, [10, 40, 53]] = sketch[[10, 53], 10:54] = 0
    reference = np.full((64, 64, 3), 255, np.uint8)
    reference[10:54, 10:40], reference[10:54, 40:54] = (200, 30, 30), (30, 60, 200)
    made = PEERS["palette_transfer"](sketch, reference)
    # The larger region takes the more frequent colour of the figure.
    np.testing.assert_allclose(made[30, 25], (200, 30, 30), atol=3)
    np.testing.assert_allclose(made[30, 47], (30, 60, 200), atol=3)
    np.testing.assert_allclose(made[3, 3], (255, 255, 255), atol=3)
