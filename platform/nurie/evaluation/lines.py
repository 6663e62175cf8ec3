"""Shape: where the edges of a picture are, against a sketch or another picture."""

from __future__ import annotations

import cv2
import numpy as np

from nurie.evaluation.fidelity import as_float

TOLERANCE = 2
"""Pixels by which an edge may be off."""
DISTANCE_LIMIT = 8.0
"""Pixels from which on a distance counts no further."""

_CANNY = (80, 160)


def edges(image: np.ndarray) -> np.ndarray:
    """Edges of a picture [H, W, 3] or of a sketch [H, W], by Canny on the luma; bool [H, W]."""
    is_bytes = image.dtype == np.uint8
    levels = image if is_bytes else np.rint(as_float(image) * 255.0).astype(np.uint8)
    grey = levels if levels.ndim == 2 else cv2.cvtColor(levels, cv2.COLOR_RGB2GRAY)
    return cv2.Canny(grey, *_CANNY, L2gradient=True) > 0


def edge_f1(first: np.ndarray, second: np.ndarray, tolerance: int = TOLERANCE) -> float:
    """Agreement of two edge maps, 0..1: harmonic mean of precision and recall.

    Args:
        first: Edges, bool [H, W].
        second: Edges, bool [H, W].
        tolerance: An edge counts as found when the other map has one within so many pixels.
    """
    if first.shape != second.shape:
        raise ValueError(f"edge maps of shapes {first.shape} and {second.shape}")
    if not first.any() or not second.any():
        return float(first.any() == second.any())
    side = 2 * tolerance + 1
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    near_first, near_second = (
        cv2.dilate(found.astype(np.uint8), disk) > 0 for found in (first, second)
    )
    precision, recall = float(near_first[second].mean()), float(near_second[first].mean())
    total = precision + recall
    return 2.0 * precision * recall / total if total else 0.0


def line_f1(sketch: np.ndarray, result: np.ndarray, tolerance: int = TOLERANCE) -> float:
    """Whether the result's edges are the sketch's lines, 0..1 (1: all of them and no other)."""
    return edge_f1(edges(sketch), edges(result), tolerance)


def line_distance_score(sketch: np.ndarray, result: np.ndarray) -> float:
    """How near the result's edges lie to the sketch's lines, 0..1 (1: upon each other)."""
    return 1.0 - edge_distance(edges(sketch), edges(result)) / DISTANCE_LIMIT


def edge_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Mean distance from the edges of one map to the nearest of the other, both ways, in pixels.

    Args:
        first: Edges, bool [H, W].
        second: Edges, bool [H, W].

    Returns:
        0..``DISTANCE_LIMIT``, to which every single distance is cut; the limit if only one of the
        maps has edges, 0 if none has.
    """
    if first.shape != second.shape:
        raise ValueError(f"edge maps of shapes {first.shape} and {second.shape}")
    if not first.any() or not second.any():
        return 0.0 if first.any() == second.any() else DISTANCE_LIMIT
    to_second, to_first = _distances(second)[first], _distances(first)[second]
    return float((to_second.mean() + to_first.mean()) / 2)


def shape_change(first: np.ndarray, second: np.ndarray, tolerance: int = TOLERANCE) -> float:
    """How much the shapes of two results differ, 0..1.

    For one sketch coloured with two references this is how much of the reference's shape leaks into
    the result: colours should change, edges should not.
    """
    return 1.0 - edge_f1(edges(first), edges(second), tolerance)


def _distances(found: np.ndarray) -> np.ndarray:
    """Distance of every pixel to the nearest edge, at most the limit, float32 [H, W]."""
    away = np.where(found, 0, 1).astype(np.uint8)
    exact = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.minimum(exact, DISTANCE_LIMIT)
