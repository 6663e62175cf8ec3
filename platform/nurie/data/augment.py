"""Augmentation of the aligned reference: the model must use its colours, not its pixels' places."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from nurie.config.data import ReferenceAugmentation

WHITE = (255, 255, 255)
ERASED_SHARE = (0.1, 0.35)
"""Smallest and largest side of an erased rectangle, as a share of the picture's side."""


@dataclass(frozen=True, eq=False)
class Augmentation:
    """One drawn augmentation, applicable to a picture and to its mask alike.

    Attributes:
        matrix: Affine map of source to result pixels, float64 [2, 3].
        erased: Rectangle (top, left, bottom, right) that becomes paper, or None.
    """

    matrix: np.ndarray
    erased: tuple[int, int, int, int] | None

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Augment a picture, uint8 [H, W, 3]; what comes into view is white.

        The result always differs from the picture, unless that is one flat white.
        """
        result = self._warp(image, cv2.INTER_LINEAR, WHITE)
        if np.array_equal(result, image):
            result = np.roll(image, 1, axis=1)
            result[:, 0] = 255
        return result

    def apply_to_mask(self, mask: np.ndarray) -> np.ndarray:
        """Augment a mask, uint8 [H, W], by the same map; what comes into view is 0."""
        return self._warp(mask, cv2.INTER_NEAREST, 0)

    def _warp(
        self, image: np.ndarray, interpolation: int, fill: int | tuple[int, int, int]
    ) -> np.ndarray:
        height, width = image.shape[:2]
        result = cv2.warpAffine(
            image,
            self.matrix,
            (width, height),
            flags=interpolation,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=fill,
        )
        if self.erased is not None:
            top, left, bottom, right = self.erased
            result[top:bottom, left:right] = fill
        return result


def draw_augmentation(
    rng: np.random.Generator, config: ReferenceAugmentation, height: int, width: int
) -> Augmentation:
    """Draw an augmentation: free resize of each side, rotation, shift, mirror, erasing.

    Args:
        rng: Source of all choices; always advanced by the same number of draws.
        config: Ranges and probabilities.
        height: Height of the picture, in pixels.
        width: Width of the picture, in pixels.
    """
    scale = rng.uniform(config.min_scale, 1, size=2)
    angle = np.deg2rad(rng.uniform(-config.max_rotation, config.max_rotation))
    shift = rng.uniform(-config.max_shift, config.max_shift, size=2) * (width, height)
    mirror = -1.0 if rng.random() < config.flip_probability else 1.0
    erase, box = rng.random() < config.erase_probability, rng.random(4)

    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = rotation @ np.diag([scale[0] * mirror, scale[1]])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    matrix = np.column_stack([linear, centre + shift - linear @ centre])
    return Augmentation(matrix, _rectangle(box, height, width) if erase else None)


def augment_reference(
    image: np.ndarray, rng: np.random.Generator, config: ReferenceAugmentation
) -> np.ndarray:
    """Augment an aligned reference (method section 8).

    Args:
        image: Picture, uint8 [H, W, 3].
        rng: Source of all choices.
        config: Ranges and probabilities.

    Returns:
        Another picture of the same size, never the exact one (unless that is flat white).
    """
    height, width = image.shape[:2]
    return draw_augmentation(rng, config, height, width).apply(image)


def _rectangle(box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    low, high = ERASED_SHARE
    tall, wide = (low + (high - low) * box[:2]) * (height, width)
    top, left = box[2] * (height - tall), box[3] * (width - wide)
    return int(top), int(left), int(np.ceil(top + tall)), int(np.ceil(left + wide))
