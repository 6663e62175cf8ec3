"""Procedural pictures: shapes, gradients, strokes and soft noise.

They hold no characters; the components see them so that they also work on art of other kinds.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

_OVERSAMPLING = 2


def procedural_picture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw one picture.

    Args:
        rng: Source of randomness.
        size: Side in pixels.

    Returns:
        sRGB picture, uint8 [size, size, 3].
    """
    side = size * _OVERSAMPLING
    picture = Image.fromarray(_ground(rng, side))
    draw = ImageDraw.Draw(picture)
    outline = tuple(int(c) for c in rng.integers(0, 90, 3))
    outlined = rng.random() < 0.6
    for _ in range(rng.integers(2, 14)):
        _shape(draw, rng, side, outline if outlined else None)
    for _ in range(rng.integers(0, 10)):
        _stroke(draw, rng, side, outline)
    small = picture.resize((size, size), Image.Resampling.BOX)
    return _textured(np.asarray(small), rng)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(c) for c in rng.integers(0, 256, 3))
    if rng.random() < 0.2:
        return red, red, red
    return red, green, blue


def _ground(rng: np.random.Generator, side: int) -> np.ndarray:
    """A plain colour, or a gradient between two colours at a random angle."""
    first = np.array(_colour(rng), np.float32)
    second = np.array(_colour(rng) if rng.random() < 0.5 else first, np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, side, dtype=np.float32)
    place = 0.5 + (axis[None, :] * np.cos(angle) + axis[:, None] * np.sin(angle)) / 1.5
    mix = place.astype(np.float32)[..., None]
    return (first * (1 - mix) + second * mix).clip(0, 255).astype(np.uint8)


def _shape(
    draw: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    side: int,
    outline: tuple[int, int, int] | None,
) -> None:
    centre = rng.uniform(0, side, 2)
    radius = side * rng.uniform(0.03, 0.4)
    width = int(rng.integers(1, 6))
    fill = _colour(rng)
    if rng.random() < 0.4:
        radii = radius * rng.uniform(0.3, 1, 2)
        box = [*(centre - radii), *(centre + radii)]
        draw.ellipse(box, fill=fill, outline=outline, width=width if outline else 0)
        return
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
    reach = radius * rng.uniform(0.4, 1, len(angles))
    points = centre + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    draw.polygon([tuple(p) for p in points], fill=fill, outline=outline, width=width)


def _stroke(
    draw: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    side: int,
    ink: tuple[int, int, int],
) -> None:
    """A quadratic curve of the picture's ink or of any colour."""
    ends = rng.uniform(0, side, (3, 2))
    t = np.linspace(0, 1, 16)[:, None]
    curve = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * ends[1] + t**2 * ends[2]
    colour = ink if rng.random() < 0.7 else _colour(rng)
    draw.line([tuple(p) for p in curve], fill=colour, width=int(rng.integers(1, 7)), joint="curve")


def _textured(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add soft noise to half of the pictures, so that flat colour is not all there is."""
    if rng.random() < 0.5:
        return picture
    size = picture.shape[0]
    cells = int(rng.choice([4, 8, 16, 32]))
    noise = rng.normal(0, rng.uniform(5, 40), (cells, cells)).astype(np.float32)
    soft = Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
    return (picture + np.asarray(soft)[..., None]).clip(0, 255).astype(np.uint8)
