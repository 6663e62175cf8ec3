"""Move a character about the canvas, so that a model cannot learn places by heart."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from nurie.data.characters import Character

_MAX_ROTATION_DEGREES = 15.0
_SCALES = (0.85, 1.6)
_MAX_SHIFT = 0.12


def place_at_random(character: Character, rng: np.random.Generator) -> Character:
    """Mirror, turn, scale and shift a character: same id, same attributes, labels still exact.

    Args:
        character: The character as drawn.
        rng: Source of randomness.

    Returns:
        A copy with moved labels and ink; what comes in from outside is background.
    """
    height, width = character.labels.shape
    angle = rng.uniform(-_MAX_ROTATION_DEGREES, _MAX_ROTATION_DEGREES)
    scale = rng.uniform(*_SCALES)
    matrix = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), angle, scale)
    matrix[:, 2] += rng.uniform(-_MAX_SHIFT, _MAX_SHIFT, 2) * (width, height)
    labels, ink = character.labels, character.ink_levels
    if rng.random() < 0.5:
        labels, ink = np.ascontiguousarray(labels[:, ::-1]), np.ascontiguousarray(ink[:, ::-1])
    return replace(
        character,
        labels=cv2.warpAffine(labels, matrix, (width, height), flags=cv2.INTER_NEAREST),
        ink_levels=cv2.warpAffine(ink, matrix, (width, height), flags=cv2.INTER_LINEAR),
    )
