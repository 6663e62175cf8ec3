"""Colour a character with a palette: the exact truth for any palette."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from nurie.data.characters import Character
from nurie.data.palettes import Palette

DEFAULT_SIZE = 128
_SHADED_ROLES = ("hair", "skin", "accessory")


@dataclass(frozen=True, eq=False)
class Rendered:
    """A coloured character.

    Attributes:
        image: sRGB picture, uint8 [S, S, 3].
        labels: Role index of every pixel, uint8 [S, S].
        mask: 255 on the character, 0 on the background, uint8 [S, S]; equals ``labels > 0``.
        ink: Ink coverage, float32 [S, S], 0..1.
        character: The character at its own resolution; line extraction works there.
    """

    image: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    ink: np.ndarray
    character: Character


def recolour(
    character: Character,
    palette: Palette,
    size: int = DEFAULT_SIZE,
    *,
    shading_probability: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Rendered:
    """Colour a character and shrink it to ``size``.

    Colours are laid at the character's own resolution and averaged down, so borders are smooth
    and a pixel inside a region has exactly the palette's colour (without shading).

    Args:
        character: What to colour.
        palette: A colour for each role that occurs, ``background`` and ``ink``; with
            ``background2`` the background runs from the first (top) to the second (bottom).
        size: Side of the result in pixels, at least 8.
        shading_probability: Chance of one darker tone over part of hair and skin.
        rng: Source of the shading; needed when its probability is above zero.

    Returns:
        The picture with its labels, mask and ink.

    Raises:
        ValueError: If ``size`` is too small, a colour is missing, or shading lacks an ``rng``.
    """
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    canvas = _colour_table(character, palette)[character.labels]
    if "background2" in palette:
        _paint_gradient(canvas, character.labels, palette)
    if shading_probability > 0:
        if rng is None:
            raise ValueError(f"shading_probability {shading_probability} needs an rng")
        if rng.random() < shading_probability:
            _shade(canvas, character, rng)
    ink = character.ink
    canvas += ink[..., None] * (np.asarray(palette["ink"], np.float32) - canvas)
    labels = cv2.resize(character.labels, (size, size), interpolation=cv2.INTER_NEAREST)
    return Rendered(
        image=(resize(canvas, size) * 255 + 0.5).clip(0, 255).astype(np.uint8),
        labels=labels,
        mask=np.where(labels > 0, 255, 0).astype(np.uint8),
        ink=resize(ink, size),
        character=character,
    )


def resize(picture: np.ndarray, size: int) -> np.ndarray:
    """Resize a square picture [H, W] or [H, W, C] to ``size``: average down, linear up."""
    shrinking = size < picture.shape[0]
    method = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return cv2.resize(picture, (size, size), interpolation=method)


def _colour_table(character: Character, palette: Palette) -> np.ndarray:
    """Colours by label index, float32 [roles, 3]."""
    present = np.flatnonzero(np.bincount(character.labels.ravel(), minlength=len(character.roles)))
    needed = {"ink", "background", *(character.roles[index] for index in present)}
    missing = sorted(needed - palette.keys())
    if missing:
        raise ValueError(
            f"palette lacks a colour for {', '.join(missing)} of {character.character_id}; "
            f"it has {', '.join(sorted(palette))}"
        )
    nothing = (0.0, 0.0, 0.0)
    return np.array([palette.get(role, nothing) for role in character.roles], np.float32)


def _paint_gradient(canvas: np.ndarray, labels: np.ndarray, palette: Palette) -> None:
    height, width = labels.shape
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    first = np.asarray(palette["background"], np.float32)
    second = np.asarray(palette["background2"], np.float32)
    rows = first + down * (second - first)
    behind = labels == 0
    canvas[behind] = np.broadcast_to(rows[:, None], (height, width, 3))[behind]


def _shade(canvas: np.ndarray, character: Character, rng: np.random.Generator) -> None:
    """Darken one side of hair, skin and accessories, in place."""
    shadow = _smooth_region(character.labels.shape, rng)
    tone = rng.uniform(0.62, 0.9) * np.array([0.97, 0.97, 1.06])
    shaded = np.array([role in _SHADED_ROLES for role in character.roles], np.float32)
    amount = shadow * shaded[character.labels]
    canvas *= 1 - amount[..., None] * (1 - tone.astype(np.float32))


def _smooth_region(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A random half-plane or the outside of an ellipse with a soft edge, float32 [H, W] 0..1."""
    height, width = shape
    angle = rng.uniform(0, 2 * np.pi)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] - np.float32(rng.uniform(-0.3, 0.3))
    x = np.linspace(-1, 1, width, dtype=np.float32)[None] - np.float32(rng.uniform(-0.3, 0.3))
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along, across = x * cos + y * sin, y * cos - x * sin
    if rng.random() < 0.5:
        bend = np.float32(rng.uniform(-0.6, 0.6))
        distance = along + bend * across * across
    else:
        radius, stretch = rng.uniform(0.35, 0.7), np.float32(rng.uniform(0.6, 1.4))
        distance = np.sqrt(along**2 + (across * stretch) ** 2) - np.float32(radius)
    softness = np.float32(rng.uniform(0.01, 0.15))
    return np.clip(distance / softness + np.float32(0.5), 0, 1)
