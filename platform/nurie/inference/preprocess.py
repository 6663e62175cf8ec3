"""From pictures to tensors: canvas, sketch, masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

SIZE_MULTIPLE = 32
"""Sides of a result are multiples of this (three halvings in latent space)."""


@dataclass(frozen=True)
class Canvas:
    """Where a sketch lies on the generated picture.

    Args:
        width: Of the generated picture, in pixels.
        height: Likewise.
        box: Left, top, right, bottom of the sketch on it.
        original: Width and height of the sketch as it was given.
    """

    width: int
    height: int
    box: tuple[int, int, int, int]
    original: tuple[int, int]

    def place(self, image: Image.Image, fill: int | tuple[int, ...]) -> Image.Image:
        """The image, of the sketch's size, scaled into its box on a filled canvas."""
        left, top, right, bottom = self.box
        canvas = Image.new(image.mode, (self.width, self.height), fill)
        scaled = image.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        canvas.paste(scaled, (left, top))
        return canvas

    def restore(self, image: Image.Image) -> Image.Image:
        """The box of a generated picture, in the sketch's own size."""
        return image.crop(self.box).resize(self.original, Image.Resampling.LANCZOS)


def fit_canvas(
    sketch: Image.Image, side: int, height: int | None = None, width: int | None = None
) -> Canvas:
    """Chooses the size of the generated picture.

    Args:
        sketch: The sketch.
        side: Area of the result is about ``side`` squared, at the sketch's aspect ratio.
        height: Height asked for, in pixels.
        width: Width asked for, in pixels; one of both alone follows the aspect ratio.

    Raises:
        ValueError: If a side that was asked for is not a multiple of 32.
    """
    for name, value in (("height", height), ("width", width)):
        if value is not None and (value < SIZE_MULTIPLE or value % SIZE_MULTIPLE):
            raise ValueError(f"{name}: {value} is not a multiple of {SIZE_MULTIPLE}")
    ratio = sketch.width / sketch.height
    if width is None and height is None:
        width, height = _round(side * ratio**0.5), _round(side / ratio**0.5)
    width = width or _round((height or side) * ratio)
    height = height or _round(width / ratio)
    scale = min(width / sketch.width, height / sketch.height)
    inner = (max(1, round(sketch.width * scale)), max(1, round(sketch.height * scale)))
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    return Canvas(width, height, (left, top, left + inner[0], top + inner[1]), sketch.size)


def _round(side: float) -> int:
    return max(SIZE_MULTIPLE, round(side / SIZE_MULTIPLE) * SIZE_MULTIPLE)


def sketch_tensor(sketches: list[Image.Image]) -> torch.Tensor:
    """Grey sketches of one size to ``B x H x W`` uint8, 255 = paper."""
    return torch.from_numpy(np.stack([np.asarray(s) for s in sketches]))


def picture_tensor(images: list[Image.Image]) -> torch.Tensor:
    """RGB pictures of one size to ``B x 3 x H x W`` in [-1, 1]."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def mask_tensor(masks: list[Image.Image]) -> torch.Tensor:
    """Masks of one size to ``B x 1 x H x W`` in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(m) for m in masks]))[:, None].float() / 255
