"""Training inputs of the background stage (method section 7): bleaching, masks, inpainting."""

from __future__ import annotations

import cv2
import numpy as np

NEAR_WHITE = (235, 256)
"""Range of the grey that bleaching puts in the place of a background."""
_FEATHER = 0.01
"""Blur of a composite's border, as a share of the side."""


def bleach(image: np.ndarray, mask: np.ndarray, grey: int) -> np.ndarray:
    """Puts one near-white grey outside the foreground.

    Args:
        image: ``H x W x 3`` (or ``H x W``) uint8.
        mask: ``H x W`` uint8, 255 = foreground.
        grey: The grey, 0..255.
    """
    weight = mask.astype(np.float32) / 255
    weight = weight if image.ndim == 2 else weight[..., None]
    return np.round(image * weight + grey * (1 - weight)).astype(np.uint8)


def disturb_mask(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask as people and models draw it: dilated, a bounding box, or partly erased.

    Args:
        mask: ``H x W`` uint8, 255 = foreground.
        rng: Chooses the fault and its size.
    """
    side = mask.shape[0]
    match rng.integers(3):
        case 0:
            radius = int(rng.integers(1, max(2, side // 12) + 1))
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
            return cv2.dilate(mask, kernel)
        case 1:
            return _bounding_box(mask)
        case _:
            erased = mask.copy()
            height, width = rng.integers(side // 8, side // 3 + 1, 2)
            top, left = rng.integers(0, side - height), rng.integers(0, side - width)
            erased[top : top + height, left : left + width] = 0
            return erased


def _bounding_box(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask > 127)
    box = np.zeros_like(mask)
    if rows.size:
        box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 255
    return box


def composite(foreground: np.ndarray, mask: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The foreground of one picture over another, with a soft border.

    Args:
        foreground: ``H x W x 3`` uint8.
        mask: Its foreground, ``H x W`` uint8.
        background: ``H x W x 3`` uint8.
    """
    sigma = max(0.5, _FEATHER * mask.shape[0])
    weight = cv2.GaussianBlur(mask, (0, 0), sigma).astype(np.float32)[..., None] / 255
    return np.round(foreground * weight + background * (1 - weight)).astype(np.uint8)
