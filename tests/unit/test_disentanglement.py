"""The benchmark of disentanglement: what it must say of copying, ignoring and the truth."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, distance_transform_edt
from sklearn.metrics import homogeneity_completeness_v_measure

from nurie.evaluation.alterations import ALTERATIONS
from nurie.evaluation.colour import delta_e, palette_distance, to_lab
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
from tests.scenes import Scene, scenes


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    return scenes(4)


@pytest.fixture(scope="module")
def scores(drawn: list[Scene]) -> dict[str, dict[str, float]]:
    """Mean scores of the truth, of copying the reference and of ignoring it."""
    answers = {
        "truth": [(s.truths, s) for s in drawn],
        "copy": [([r.image for r in s.references], s) for s in drawn],
        "ignore": [([s.truths[0]] * 4, s) for s in drawn],
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


def test_a_little_copying_is_worse_than_none_and_better_than_much(drawn) -> None:
    scene = drawn[0]
    values = []
    for share in (0.0, 0.25, 0.6):
        mixed = [
            ((1 - share) * truth + share * reference.image).astype(np.uint8)
            for truth, reference in zip(scene.truths, scene.references, strict=True)
        ]
        values.append(shape_score(mixed, [r.image for r in scene.references]))
    assert values[0] > values[1] > values[2]


def test_order_and_mirroring_change_nothing(drawn) -> None:
    scene = drawn[1]
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


def test_the_parts_of_a_change_equal_second_implementations(drawn) -> None:
    """Edges and lines by scipy, segments by scikit-learn."""
    first, second = drawn[0].truths[0], drawn[0].references[0].image
    one, two = Shape.of(first), Shape.of(second)
    change = change_of(one, two)
    for image, shape in ((first, one), (second, two)):
        channels = [cv2.Canny(image[..., n], 80, 160, L2gradient=True) > 0 for n in range(3)]
        np.testing.assert_array_equal(shape.edges, np.any(channels, axis=0))
    near = np.ones((5, 5), bool)
    near[[0, 0, 0, 0, 4, 4, 4, 4], [0, 1, 3, 4, 0, 1, 3, 4]] = False
    shares = [
        binary_dilation(to, near)[of].mean()
        for of, to in ((one.edges, two.edges), (two.edges, one.edges))
    ]
    assert change.edges == pytest.approx(1 - 2 / sum(1 / share for share in shares))
    away = [
        np.minimum(distance_transform_edt(~to), 8)[of].mean() / 8
        for of, to in ((one.lines, two.lines), (two.lines, one.lines))
    ]
    assert change.lines == pytest.approx(np.mean(away), abs=1e-6)
    known = homogeneity_completeness_v_measure(one.segments.ravel(), two.segments.ravel())[:2]
    assert change.segments == pytest.approx(1 - max(known))
    assert change.mean == pytest.approx((change.edges + change.lines + change.segments) / 3)
    assert min(change) > 0.1
    assert entanglement(first, second) == pytest.approx(change.mean)


def test_the_shape_score_is_the_share_that_does_not_arrive(drawn) -> None:
    """Of three references of which the third is the first: two of three pairs differ."""
    one, two = (reference.image for reference in drawn[0].references[:2])
    given = change_of(Shape.of(one), Shape.of(two)).mean
    other = drawn[1].truths[0]
    arrived = change_of(Shape.of(one), Shape.of(other)).mean
    score = shape_score([one, one, other], [one, two, one])
    assert score == pytest.approx(max(0.0, 1 - arrived / given))
    assert shape_score([other, other, other], [one, two, one]) == 1.0


def test_the_margin_has_a_closed_form_for_greys() -> None:
    """Palettes on one line are as far apart as their lightness, whatever line is looked along."""
    greys = [np.full((16, 16, 3), value, np.uint8) for value in (40, 70, 180, 220)]
    dark, darkish, lightish, light = (to_lab(grey)[0, 0, 0] for grey in greys)
    found = colour_score(greys[1:3], [Reference(greys[0]), Reference(greys[3])], None)
    kept = (darkish - dark) + (light - lightish)
    swapped = (light - darkish) + (lightish - dark)
    margin = (swapped - kept) / (swapped + kept)
    assert 0.3 < margin < 0.9
    assert found == pytest.approx((1.0, margin, (1 + margin) / 2), abs=1e-5)


# Altered references


def test_alterations_move_shapes_and_keep_the_figures_colours(drawn) -> None:
    reference = drawn[0].references[0]
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
def test_peers_keep_the_lines_and_take_colours_of_the_reference(name, drawn) -> None:
    scene = drawn[0]
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
