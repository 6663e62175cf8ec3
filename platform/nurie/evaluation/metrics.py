"""Metrics with closed forms: fidelity (PSNR), colour (CIELAB), shape (edges).

Pictures are uint8 [H, W, 3] in 0..255 or floating point [H, W, 3] in 0..1; all arithmetic is in
floating point, because differences of uint8 wrap around.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from nurie.data.colour_names import srgb_to_lab

MAX_PSNR = 100.0
"""PSNR in dB that stands for "no difference", so that averages stay finite."""

_QUANTILES = 256
_DIRECTIONS = 64
_CANNY = (80, 160)


def as_float(image: np.ndarray) -> np.ndarray:
    """A picture as float64 in 0..1.

    Raises:
        ValueError: Another dtype than uint8 or floating point, or values outside of 0..1.
    """
    if image.dtype == np.uint8:
        return image.astype(np.float64) / 255.0
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(
            f"a picture of dtype {image.dtype} has no known range; give uint8 or float"
        )
    if image.size and not (image.min() >= 0.0 and image.max() <= 1.0):
        raise ValueError(
            f"a floating-point picture must lie in 0..1; this one is in "
            f"{image.min():.3g}..{image.max():.3g}"
        )
    return image.astype(np.float64)


def same_shape(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both pictures as ``as_float`` gives them.

    Raises:
        ValueError: The shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"pictures of shapes {first.shape} and {second.shape} are not comparable")
    return as_float(first), as_float(second)


def psnr(result: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, at most ``MAX_PSNR``."""
    first, second = same_shape(result, truth)
    error = float(np.mean((first - second) ** 2))
    return MAX_PSNR if error == 0.0 else min(MAX_PSNR, -10.0 * float(np.log10(error)))


def to_lab(image: np.ndarray) -> np.ndarray:
    """CIELAB (sRGB, white point D65), float64 [H, W, 3]: L in 0..100, a and b around -100..100.

    OpenCV's conversion interpolates in a table and is off by up to 0.3; this one is exact.
    """
    return srgb_to_lab(as_float(image))


def delta_e(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Colour difference of every pixel, CIE 1976 (Euclidean in CIELAB), [H, W]."""
    if first.shape != second.shape:
        raise ValueError(f"pictures of shapes {first.shape} and {second.shape} are not comparable")
    return np.linalg.norm(to_lab(first) - to_lab(second), axis=-1)


def role_errors(
    result: np.ndarray, truth: np.ndarray, labels: np.ndarray, roles: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Colour error of every role that occurs.

    Args:
        result: Picture [H, W, 3].
        truth: Picture [H, W, 3].
        labels: Role index of every pixel, [H, W].
        roles: Name of every index.

    Returns:
        Role -> (mean delta E of its pixels, delta E between its median colours). The median colour
        ignores lines and stray pixels; the mean does not.
    """
    differences = delta_e(result, truth)
    lab_result, lab_truth = to_lab(result), to_lab(truth)
    errors = {}
    for index in np.unique(labels):
        here = labels == index
        medians = [np.median(lab[here], axis=0) for lab in (lab_result, lab_truth)]
        errors[roles[int(index)]] = (
            float(differences[here].mean()),
            float(np.linalg.norm(medians[0] - medians[1])),
        )
    return errors


def palette_distance(
    first: np.ndarray,
    second: np.ndarray,
    first_mask: np.ndarray | None = None,
    second_mask: np.ndarray | None = None,
) -> float:
    """How far apart the colours of two pictures are, wherever in the picture they lie.

    The sliced Wasserstein distance of the pixels in CIELAB, times 2: shifting every colour by a
    delta E of d gives d; moving pixels about gives 0.

    Args:
        first: Picture [H, W, 3].
        second: Picture [h, w, 3].
        first_mask: Pixels of ``first`` that count, bool [H, W] (None, or no pixel set: all).
        second_mask: Pixels of ``second`` that count, bool [h, w].
    """
    directions = _directions()
    levels = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    projected = [
        np.quantile(_pixels(to_lab(image), mask) @ directions.T, levels, axis=0)
        for image, mask in ((first, first_mask), (second, second_mask))
    ]
    return 2.0 * float(np.abs(projected[0] - projected[1]).mean())


def edges(image: np.ndarray) -> np.ndarray:
    """Edges of a picture [H, W, 3] or of a sketch [H, W], by Canny on the luma; bool [H, W]."""
    levels = np.rint(as_float(image) * 255.0).astype(np.uint8)
    grey = levels if levels.ndim == 2 else cv2.cvtColor(levels, cv2.COLOR_RGB2GRAY)
    return cv2.Canny(grey, *_CANNY, L2gradient=True) > 0


def edge_f1(first: np.ndarray, second: np.ndarray, tolerance: int = 2) -> float:
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


def line_f1(sketch: np.ndarray, result: np.ndarray, tolerance: int = 2) -> float:
    """Whether the result's edges are the sketch's lines, 0..1 (1: all of them and no other)."""
    return edge_f1(edges(sketch), edges(result), tolerance)


def shape_change(first: np.ndarray, second: np.ndarray, tolerance: int = 2) -> float:
    """How much the shapes of two results differ, 0..1.

    For one sketch coloured with two references this is how much of the reference's shape leaks into
    the result: colours should change, edges should not.
    """
    return 1.0 - edge_f1(edges(first), edges(second), tolerance)


def _pixels(lab: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    return lab.reshape(-1, 3) if mask is None or not mask.any() else lab[mask]


def _directions() -> np.ndarray:
    """Unit vectors spread evenly over half of the sphere (a Fibonacci spiral), [64, 3]."""
    index = np.arange(_DIRECTIONS) + 0.5
    height = index / _DIRECTIONS
    radius = np.sqrt(1.0 - height**2)
    angle = np.pi * (1.0 + np.sqrt(5.0)) * index
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)
