"""Nearness to the truth: PSNR, SSIM (Wang et al. 2004), multi-scale SSIM (Wang et al. 2003).

Pictures are uint8 in 0..255 or floating point in 0..1. All arithmetic is in floating point, because
differences of uint8 wrap around: 10 - 12 is 254, whose square is 4, and two unrelated pictures come
out at 28 dB.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

MAX_PSNR = 100.0
"""PSNR in dB that stands for "no difference", so that averages stay finite."""

_WINDOW = 11
_SIGMA = 1.5
_C1 = 0.01**2
_C2 = 0.03**2
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


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


def ssim(result: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity, mean over pixels and channels; 1 for equal pictures.

    Args:
        result: Picture [H, W, 3] or [H, W], uint8, or floating point in 0..1.
        truth: Picture of the same shape, at least 11 x 11.
    """
    luminance, structure = _ssim_terms(*same_shape(result, truth))
    return float((luminance * structure).mean())


def ms_ssim_distance(result: np.ndarray, truth: np.ndarray) -> float:
    """1 - multi-scale SSIM; 0 for equal pictures, at most 1.

    Up to five scales, as many as leave 11 pixels on the shorter side; their weights are scaled
    to sum to 1.
    """
    return similarity(result, truth).ms_ssim_distance


class Similarity(NamedTuple):
    """Both structural measures of a pair of pictures.

    Attributes:
        ssim: As ``ssim`` gives it.
        ms_ssim_distance: As ``ms_ssim_distance`` gives it.
    """

    ssim: float
    ms_ssim_distance: float


def similarity(result: np.ndarray, truth: np.ndarray) -> Similarity:
    """Both structural measures in one pass: the first scale of the second is the first."""
    first, second = same_shape(result, truth)
    shorter = min(first.shape[:2])
    scales = 1
    while scales < len(_SCALE_WEIGHTS) and shorter // 2**scales >= _WINDOW:
        scales += 1
    weights = np.array(_SCALE_WEIGHTS[:scales]) / sum(_SCALE_WEIGHTS[:scales])
    product, single = 1.0, 0.0
    for scale, weight in enumerate(weights):
        luminance, structure = _ssim_terms(first, second)
        last = scale == scales - 1
        value = float((luminance * structure if last else structure).mean())
        # A negative correlation has no real power; it counts as no similarity.
        product *= max(value, 0.0) ** weight
        if scale == 0:
            single = value if last else float((luminance * structure).mean())
        first, second = _halve(first), _halve(second)
    return Similarity(single, 1.0 - product)


def _ssim_terms(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Luminance term and contrast-structure term wherever the window fits."""
    if min(first.shape[:2]) < _WINDOW:
        raise ValueError(
            f"SSIM needs pictures of at least {_WINDOW} x {_WINDOW} pixels, not {first.shape[:2]}"
        )
    mean_a, mean_b = _blur(first), _blur(second)
    squares, products = mean_a * mean_a + mean_b * mean_b, mean_a * mean_b
    # Both variances occur as their sum only, which one blur gives.
    variances = _blur(first * first + second * second) - squares
    covariance = _blur(first * second) - products
    luminance = (2 * products + _C1) / (squares + _C1)
    structure = (2 * covariance + _C2) / (variances + _C2)
    return luminance, structure


def _blur(image: np.ndarray) -> np.ndarray:
    margin = _WINDOW // 2
    blurred = cv2.GaussianBlur(image, (_WINDOW, _WINDOW), _SIGMA)
    return blurred[margin:-margin, margin:-margin]


def _halve(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[0] // 2, image.shape[1] // 2
    even = image[: 2 * height, : 2 * width]
    return cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)
