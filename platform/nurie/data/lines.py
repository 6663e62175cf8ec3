"""Line sketches in several hands, from a coloured character or from any picture.

Sketches are float32 [H, W], 1 = paper white, dark lines. Drawing happens as ink (1 = line) and is
turned over at the end.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from nurie.data.recolour import Rendered, resize

LINE_STYLES: tuple[str, ...] = ("ink", "boundary", "xdog", "bilateral_xdog", "pencil")
"""``ink``: clean thin lines; ``boundary``: lines of changing thickness; ``xdog``: edges of the
colours (extended difference of Gaussians); ``bilateral_xdog``: the same after textures are smoothed
away and edges kept; ``pencil``: grey, grainy, slightly displaced."""
_EDGE_STYLES = ("xdog", "bilateral_xdog")

# Lines of small pictures are drawn at this size and averaged down: smooth instead of jagged.
_WORKING_SIDE = 256

_Hand = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def make_sketch(rendered: Rendered, style: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a coloured character as lines; every border between parts is in the sketch.

    Args:
        rendered: The coloured character.
        style: One of :data:`LINE_STYLES`.
        rng: Source of thickness, darkness and jitter.

    Returns:
        Sketch of the picture's size, float32 [S, S], 1 = white.

    Raises:
        ValueError: If the style is unknown.
    """
    _check(style)
    if style in _EDGE_STYLES:
        return sketch_from_image(rendered.image, style, rng)
    character = rendered.character
    lines = _HANDS[style](np.maximum(character.ink, label_borders(character.labels)), rng)
    return 1 - resize(lines, rendered.image.shape[0])


def sketch_from_image(image: np.ndarray, style: str, rng: np.random.Generator) -> np.ndarray:
    """Draw any picture as lines: its edges, in other styles redrawn in their hand.

    Args:
        image: sRGB picture, uint8 [H, W, 3].
        style: One of :data:`LINE_STYLES`.
        rng: Source of thickness, darkness and jitter.

    Returns:
        Sketch, float32 [H, W], 1 = white.

    Raises:
        ValueError: If the style is unknown or the picture is not uint8 RGB.
    """
    _check(style)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    enlarged = max(_WORKING_SIDE / max(height, width), 1.0)
    large = cv2.resize(image, None, fx=enlarged, fy=enlarged, interpolation=cv2.INTER_CUBIC)
    if style == "bilateral_xdog":
        large = _without_texture(large)
    sigma = rng.uniform(0.6, 1.1) * (max(large.shape[:2]) / _WORKING_SIDE) ** 0.5
    sketch = xdog(large, sigma=sigma, threshold=rng.uniform(0.007, 0.014))
    if style not in _EDGE_STYLES:
        sketch = 1 - _HANDS[style](1 - sketch, rng)
    return np.clip(cv2.resize(sketch, (width, height), interpolation=cv2.INTER_AREA), 0, 1)


def xdog(
    image: np.ndarray, *, sigma: float = 0.7, threshold: float = 0.012, sharpness: float = 60.0
) -> np.ndarray:
    """Extended difference of Gaussians of the colour channels (Winnemoeller et al., 2012).

    The strongest response of the three channels counts, so that borders between colours of equal
    lightness stay; the two Gaussians weigh the same, so that flat dark areas stay paper.

    Args:
        image: sRGB picture, uint8 [H, W, 3].
        sigma: Width of the narrow Gaussian in pixels; the wide one is 1.6 times that.
        threshold: Response below which there is no line.
        sharpness: Steepness from paper to line.

    Returns:
        Sketch, float32 [H, W], 1 = white.
    """
    # The square root lifts dark tones: black lines on dark hair are lines too.
    picture = np.sqrt(image.astype(np.float32) / np.float32(255))
    narrow = cv2.GaussianBlur(picture, (0, 0), sigma)
    wide = cv2.GaussianBlur(picture, (0, 0), sigma * 1.6)
    response = (narrow - wide).min(axis=2) + np.float32(threshold)
    return 1 + np.tanh(np.minimum(response, 0) * np.float32(sharpness))


def _without_texture(image: np.ndarray) -> np.ndarray:
    """Bilateral filter (Tomasi and Manduchi, 1998), twice: small patterns go, edges stay."""
    for _ in range(2):
        image = cv2.bilateralFilter(image, d=7, sigmaColor=25, sigmaSpace=3)
    return image


def label_borders(labels: np.ndarray) -> np.ndarray:
    """Lines two pixels wide wherever neighbouring labels differ, float32 [H, W], 1 = line."""
    lines = np.zeros(labels.shape, bool)
    down = labels[1:] != labels[:-1]
    right = labels[:, 1:] != labels[:, :-1]
    lines[1:] |= down
    lines[:-1] |= down
    lines[:, 1:] |= right
    lines[:, :-1] |= right
    return lines.astype(np.float32)


def _ink_hand(lines: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return lines * np.float32(rng.uniform(0.85, 1.0))


def _boundary_hand(lines: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Thin here, thick there: mixes the lines with a thickened copy along a smooth field."""
    width = int(rng.integers(2, 5))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    thick = cv2.GaussianBlur(cv2.dilate(lines, kernel), (0, 0), 0.7)
    pressure = np.clip(_smooth_field(lines.shape, rng) + np.float32(rng.uniform(-0.2, 0.6)), 0, 1)
    return lines + pressure * np.maximum(thick - lines, 0)


def _pencil_hand(lines: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Displaced, softened, grey and grainy; half of the sketches carry a faint second stroke."""
    stroke = _displace(lines, rng)
    if rng.random() < 0.5:
        stroke = np.maximum(stroke, np.float32(0.5) * _displace(lines, rng))
    stroke = cv2.GaussianBlur(stroke, (0, 0), rng.uniform(0.6, 1.1))
    grain = rng.random(lines.shape, np.float32)
    grain = 1 - np.float32(rng.uniform(0.15, 0.5)) * cv2.blur(grain, (2, 2))
    darkness = np.float32(rng.uniform(0.6, 1.0))
    return np.clip(stroke * grain * np.float32(1.3), 0, 1) * darkness


def _displace(lines: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = lines.shape
    reach = np.float32(rng.uniform(0.5, 2.0) * height / 256)
    x = np.arange(width, dtype=np.float32)[None] + reach * _smooth_field(lines.shape, rng)
    y = np.arange(height, dtype=np.float32)[:, None] + reach * _smooth_field(lines.shape, rng)
    return cv2.remap(lines, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _smooth_field(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Slowly changing noise, float32 [H, W], about -1..1."""
    coarse = rng.uniform(-1, 1, (9, 9)).astype(np.float32)
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


_HANDS: dict[str, _Hand] = {
    "ink": _ink_hand,
    "boundary": _boundary_hand,
    "pencil": _pencil_hand,
}


def _check(style: str) -> None:
    if style not in LINE_STYLES:
        raise ValueError(f"unknown line style {style!r}; choose from {', '.join(LINE_STYLES)}")
