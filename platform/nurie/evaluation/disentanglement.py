"""The benchmark of disentanglement: one sketch, one seed, swapped references.

Shapes must stay and colours must follow. docs/reference/disentanglement.md has the formulas, what
they do not depend on, and their limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np

from nurie.data.lines import xdog
from nurie.evaluation.colour import dominant_colours, nearest_colour, palette_distance, to_lab
from nurie.evaluation.fidelity import as_float
from nurie.evaluation.lines import DISTANCE_LIMIT, edge_distance, edge_f1, edges
from nurie.evaluation.measure import Reference

_SEGMENT_RADIUS = 15.0
_SEGMENT_COVERAGE = 0.97
_DARK = 0.5


class ShapeChange(NamedTuple):
    """How far the shapes of two pictures differ; each part 0 (equal) to 1.

    Attributes:
        edges: 1 - F1 of the edges of any colour channel, within 2 pixels.
        lines: Distance between dark lines, cut at 8 pixels, as a share of that.
        segments: Share of what one picture's regions of one colour leave open about the other's.
    """

    edges: float
    lines: float
    segments: float

    @property
    def mean(self) -> float:
        """Mean of the three parts."""
        return sum(self) / len(self)


@dataclass(frozen=True)
class Shape:
    """What of a picture is compared.

    Attributes:
        edges: Edges of any colour channel, bool [H, W].
        lines: Dark lines, bool [H, W].
        segments: Which dominant colour a pixel has, [H, W].
    """

    edges: np.ndarray
    lines: np.ndarray
    segments: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray) -> Shape:
        """The shapes of a picture, uint8 [H, W, 3]."""
        lab = to_lab(image).reshape(-1, 3)
        colours = dominant_colours(lab, _SEGMENT_RADIUS, _SEGMENT_COVERAGE)
        return cls(
            np.any([edges(as_float(image[..., channel])) for channel in range(3)], axis=0),
            xdog(image) < _DARK,
            nearest_colour(lab, colours)[0].reshape(image.shape[:2]),
        )


def change_of(first: Shape, second: Shape) -> ShapeChange:
    """How far the shapes of two pictures of one size differ."""
    return ShapeChange(
        1.0 - edge_f1(first.edges, second.edges),
        edge_distance(first.lines, second.lines) / DISTANCE_LIMIT,
        _open_share(first.segments, second.segments),
    )


def mean_change(shapes: Sequence[Shape]) -> ShapeChange:
    """Mean change over all pairs."""
    changes = [change_of(*pair) for pair in combinations(shapes, 2)]
    return ShapeChange(*np.mean(changes, axis=0).tolist())


def shape_score(results: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> float:
    """Share of the references' differences of shape that does not arrive in the results.

    1 where all results have the same shapes, 0 where they differ as much as the references do.

    Args:
        results: One sketch coloured with every reference, uint8 [H, W, 3].
        references: The references, any sizes.

    Raises:
        ValueError: Fewer than two references, or not one result for each.
    """
    _check(results, references)
    height, width = results[0].shape[:2]
    fitted = [cv2.resize(r, (width, height), interpolation=cv2.INTER_AREA) for r in references]
    given = mean_change([Shape.of(image) for image in fitted]).mean
    arrived = mean_change([Shape.of(image) for image in results]).mean
    if given == 0.0:
        return 1.0 if arrived == 0.0 else 0.0
    return max(0.0, 1.0 - arrived / given)


class ColourScore(NamedTuple):
    """How well every result follows its own reference and no other.

    Attributes:
        retrieval: Share of results whose own reference has the nearest palette.
        margin: How much nearer that is than after swapping references in pairs, -1..1.
        score: Mean of both, each cut at chance: 0 for results that ignore their reference.
    """

    retrieval: float
    margin: float
    score: float


def colour_score(
    results: Sequence[np.ndarray], references: Sequence[Reference], mask: np.ndarray | None
) -> ColourScore:
    """Retrieval of every result's reference by its palette.

    Args:
        results: One sketch coloured with every reference, uint8 [H, W, 3].
        references: The references.
        mask: Foreground of the sketch, bool [H, W]; None: everything counts.

    Raises:
        ValueError: Fewer than two references, or not one result for each.
    """
    _check(results, references)
    count = len(results)
    distances = np.array(
        [[palette_distance(y, r.image, mask, r.mask) for r in references] for y in results]
    )
    best = distances.min(axis=1, keepdims=True)
    nearest = distances == best  # A tie counts by its share.
    retrieval = float((np.diag(nearest) / nearest.sum(axis=1)).mean())
    own = np.diag(distances)
    margins = []
    for one, two in combinations(range(count), 2):
        kept, swapped = own[one] + own[two], distances[one, two] + distances[two, one]
        margins.append((swapped - kept) / (swapped + kept) if swapped + kept else 0.0)
    margin = float(np.mean(margins))
    beyond_chance = (retrieval - 1 / count) / (1 - 1 / count)
    return ColourScore(retrieval, margin, (max(0.0, beyond_chance) + max(0.0, margin)) / 2)


def combined(shape: float, colour: float) -> float:
    """The one number: harmonic mean of shape score and colour score, 0 where either is 0."""
    return 2 * shape * colour / (shape + colour) if shape + colour else 0.0


def score_swaps(
    results: Sequence[np.ndarray], references: Sequence[Reference], mask: np.ndarray | None
) -> dict[str, float]:
    """The number and its parts for one sketch."""
    shape = shape_score(results, [reference.image for reference in references])
    colour = colour_score(results, references, mask)
    change = mean_change([Shape.of(image) for image in results])
    return {
        "disentanglement": combined(shape, colour.score),
        "shape_score": shape,
        "colour_score": colour.score,
        "retrieval": colour.retrieval,
        "margin": colour.margin,
        "change/edges": change.edges,
        "change/lines": change.lines,
        "change/segments": change.segments,
    }


def entanglement(result: np.ndarray, altered: np.ndarray) -> float:
    """Change of a result's shapes when only its reference is altered, 0..1."""
    return change_of(Shape.of(result), Shape.of(altered)).mean


def _open_share(first: np.ndarray, second: np.ndarray) -> float:
    """The smaller of H(first|second) / H(first) and H(second|first) / H(second).

    Taking the smaller one lets two regions get one colour: that alone is no change of shape.
    """
    joint = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(joint, (first.ravel(), second.ravel()), 1.0)
    one, two, both = (_entropy(counts) for counts in (joint.sum(1), joint.sum(0), joint.ravel()))
    if one == 0.0 or two == 0.0:
        return 0.0
    return float(np.clip(min((both - two) / one, (both - one) / two), 0.0, 1.0))


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _check(results: Sequence[np.ndarray], references: Sequence[object]) -> None:
    if len(results) != len(references) or len(results) < 2:
        raise ValueError(
            f"{len(results)} results of {len(references)} references: one of each, 2 and more"
        )
