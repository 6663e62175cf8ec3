"""From generated pictures to what a person gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from PIL import Image

from nurie.inference.layers import LayeredPicture
from nurie.inference.request import Prepared


@dataclass
class ColorizationOutput(BaseOutput):
    """Result of a call.

    Args:
        images: RGB pictures.
        seeds: Seed of each.
        layered: The same pictures in layers, for files that hold them.
        controls: Every control as it was used, the model's own defaults filled in.
    """

    images: list[Image.Image]
    seeds: list[int]
    layered: list[LayeredPicture]
    controls: dict[str, Any]


def to_pictures(pixels: torch.Tensor) -> list[Image.Image]:
    """``B x 3 x H x W`` in [-1, 1] to RGB pictures."""
    bytes_ = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(p) for p in bytes_.permute(0, 2, 3, 1).cpu().numpy()]


def finish(
    image: Image.Image, picture: Prepared, line_overlay: float, keep_size: bool
) -> LayeredPicture:
    """Resizes to the sketch's size, if asked for, and joins the sketch's lines and mask."""
    if keep_size:
        image = picture.canvas.restore(image)
        return LayeredPicture(image, picture.original_sketch, picture.original_mask, line_overlay)
    return LayeredPicture(image, picture.sketch, picture.sketch_mask, line_overlay)
