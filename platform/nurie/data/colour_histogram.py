"""The colours of a picture in a few numbers, without where they are."""

from __future__ import annotations

import cv2
import numpy as np

NUM_COLOURS = 27
"""Three levels of lightness, of green to red, and of blue to yellow."""
_LIGHTNESS_EDGES = (85, 170)
_CHROMA_EDGES = (118, 138)
"""OpenCV's Lab has grey at 128 in both: the middle level is what looks grey."""


def colour_histogram(image: np.ndarray) -> np.ndarray:
    """Shares of the colours of a picture.

    Args:
        image: sRGB picture, uint8 [H, W, 3].

    Returns:
        float32 [27], sums to 1.
    """
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).reshape(-1, 3)
    lightness = np.digitize(lab[:, 0], _LIGHTNESS_EDGES)
    red, yellow = (np.digitize(lab[:, channel], _CHROMA_EDGES) for channel in (1, 2))
    counts = np.bincount(9 * lightness + 3 * red + yellow, minlength=NUM_COLOURS)
    return (counts / counts.sum()).astype(np.float32)


def colour_likeness(histogram: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection of histograms (Swain and Ballard, 1991): 0 nothing shared, 1 the same colours.

    Args:
        histogram: [27], or one for each of the others.
        others: [N, 27].
    """
    return np.minimum(histogram, others).sum(axis=1)
