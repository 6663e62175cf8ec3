"""From generated pictures to what a person gets."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from nurie.inference.request import Prepared


def to_pictures(pixels: torch.Tensor) -> list[Image.Image]:
    """``B x 3 x H x W`` in [-1, 1] to RGB pictures."""
    bytes_ = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(p) for p in bytes_.permute(0, 2, 3, 1).cpu().numpy()]


def overlay_lines(image: Image.Image, sketch: Image.Image, strength: float) -> Image.Image:
    """Multiplies a grey sketch of the same size onto a picture.

    Args:
        image: RGB.
        sketch: Dark lines on white.
        strength: 0 leaves the picture as it is, 1 lays the lines on fully.
    """
    if strength == 0:
        return image
    lines = np.asarray(sketch, dtype=np.float32)[..., None] / 255
    factor = 1 - strength * (1 - lines)
    return Image.fromarray((np.asarray(image) * factor).round().astype(np.uint8))


def finish(
    image: Image.Image, picture: Prepared, line_overlay: float, keep_size: bool
) -> Image.Image:
    """Resizes to the sketch's size and lays its lines over the result, as asked for."""
    if keep_size:
        image = picture.canvas.restore(image)
        return overlay_lines(image, picture.original_sketch, line_overlay)
    return overlay_lines(image, picture.sketch, line_overlay)
