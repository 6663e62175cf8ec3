"""Finding the figure: in a sketch by what its lines enclose, in a picture by what surrounds it."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from nurie.inference.images import to_rgb

_LINE = 160
"""Sketch values below this count as a line when regions are filled."""
_OPAQUE = 128
_THIN = 1 / 48
"""Lines are thinner than this share of a picture's longer side."""


def grey_sketch(sketch: Image.Image) -> Image.Image:
    """Dark lines on white paper, in full contrast, whatever the sketch came as.

    White lines on black are inverted; paper and lines are stretched to white and black, since faint
    pencil lines would otherwise be taken for paper.
    """
    grey = np.asarray(sketch.convert("L"), dtype=np.float32)
    if np.median(grey) < 128:
        grey = 255 - grey
    low, high = np.percentile(grey, 0.2), np.percentile(grey, 90)
    if high - low > 16:
        grey = (grey - low) / (high - low) * 255
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8))


def sketch_foreground(sketch: Image.Image) -> Image.Image:
    """Foreground of a grey sketch: everything that paper at the border does not reach.

    Gaps in the outline are closed at a small scale first. A sketch whose lines enclose nothing is
    foreground as a whole.
    """
    grey = np.asarray(sketch)
    lines = cv2.erode(grey, np.ones((3, 3), np.uint8)) < _LINE
    outside = _reached_from_border(~lines)
    inside = ~cv2.dilate(outside.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    enclosed = inside & ~lines
    if enclosed.mean() < 0.02:
        return Image.new("L", sketch.size, 255)
    return Image.fromarray(np.where(inside | lines, 255, 0).astype(np.uint8))


def picture_foreground(image: Image.Image) -> Image.Image:
    """Foreground of a picture: its alpha, or all that differs from what surrounds the border."""
    if image.mode == "RGBA":
        alpha = image.getchannel("A")
        if np.asarray(alpha).min() < _OPAQUE:
            return alpha
    pixels = np.asarray(image.convert("RGB")).astype(np.int16)
    edge = np.concatenate([pixels[0], pixels[:, 0], pixels[:, -1]])
    difference = np.abs(pixels - np.median(edge, axis=0)).max(axis=2)
    outside = _reached_from_border(difference < 24)
    if outside.mean() < 0.02 or outside.mean() > 0.98:
        return Image.new("L", image.size, 255)
    return Image.fromarray(np.where(outside, 0, 255).astype(np.uint8))


def find_figure(picture: Image.Image) -> Image.Image:
    """Foreground of a sketch as the pipeline finds it, or of a cut-out picture its alpha.

    Lines on transparent paper are a sketch and no cut-out: they are laid over white.

    Args:
        picture: Any size and mode.

    Returns:
        Mask of mode ``L`` and the picture's size, 255 on the figure.
    """
    if picture.mode == "RGBA":
        alpha = picture.getchannel("A")
        if _is_cut_out(np.asarray(alpha) >= _OPAQUE):
            return alpha
    return sketch_foreground(grey_sketch(to_rgb(picture)))


def _is_cut_out(opaque: np.ndarray) -> bool:
    """Whether what is opaque, H x W booleans, is an area of its own, neither all nor only lines."""
    if opaque.all() or not opaque.any():
        return False
    side = max(3, round(max(opaque.shape) * _THIN))
    core = cv2.erode(opaque.astype(np.uint8), np.ones((side, side), np.uint8))
    return core.sum() >= opaque.sum() / 4


def _reached_from_border(passable: np.ndarray) -> np.ndarray:
    """Pixels connected with the border through passable pixels, H x W booleans."""
    _, regions = cv2.connectedComponents(passable.astype(np.uint8), connectivity=4)
    border = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    return np.isin(regions, np.setdiff1d(border, [0]))
