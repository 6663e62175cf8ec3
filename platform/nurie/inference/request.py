"""One picture to make, prepared: what the denoiser needs of sketch, reference and controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from nurie.inference.foreground import grey_sketch, picture_foreground, sketch_foreground
from nurie.inference.images import to_rgb
from nurie.inference.preprocess import Canvas, fit_canvas

_T = TypeVar("_T")


def as_list(value: _T | Sequence[_T], count: int, name: str) -> list[_T]:
    """A list of ``count`` values: one value is repeated.

    Raises:
        ValueError: If a list has another length.
    """
    values: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(values) == 1:
        values = values * count
    if len(values) != count:
        raise ValueError(f"{name}: got {len(values)} values for {count} pictures")
    return values


@dataclass(frozen=True)
class Prepared:
    """A picture to make; all images but the original ones have the canvas's size.

    Args:
        canvas: Size of the result and place of the sketch on it.
        original_sketch: Grey sketch in its own size, for the line overlay.
        original_mask: Foreground of the sketch in its own size, for the layers.
        sketch: Grey sketch on the canvas.
        sketch_mask: Foreground of the sketch.
        reference: Reference, RGB.
        reference_mask: Foreground of the reference.
        background: Picture whose background is wanted; the reference itself when none was given.
    """

    canvas: Canvas
    original_sketch: Image.Image
    original_mask: Image.Image
    sketch: Image.Image
    sketch_mask: Image.Image
    reference: Image.Image
    reference_mask: Image.Image
    background: Image.Image


def prepare(
    sketch: Image.Image,
    reference: Image.Image,
    sketch_mask: Image.Image | None,
    reference_mask: Image.Image | None,
    background: Image.Image | None,
    side: int,
    height: int | None,
    width: int | None,
) -> Prepared:
    """Prepares one picture; masks that are not given are made.

    Args:
        sketch: Any size and mode; white lines on black are inverted.
        reference: Any size and mode.
        sketch_mask: Foreground of the sketch, in its size.
        reference_mask: Foreground of the reference, in its size.
        background: Picture whose background is wanted.
        side: See ``fit_canvas``.
        height: See ``fit_canvas``.
        width: See ``fit_canvas``.
    """
    canvas = fit_canvas(sketch, side, height, width)
    grey = grey_sketch(to_rgb(sketch))
    placed = canvas.place(grey, 255)
    mask = sketch_mask.convert("L") if sketch_mask is not None else sketch_foreground(grey)
    mask = mask.resize(grey.size)
    colours = to_rgb(reference)
    reference_mask = reference_mask or picture_foreground(reference)
    return Prepared(
        canvas,
        grey,
        mask,
        placed,
        canvas.place(mask, 0),
        _square(colours, canvas),
        _square(reference_mask.convert("L"), canvas),
        _square(to_rgb(background) if background is not None else colours, canvas),
    )


def _square(image: Image.Image, canvas: Canvas) -> Image.Image:
    """A reference in the canvas's size; its aspect ratio carries no meaning for the model."""
    return image.resize((canvas.width, canvas.height), Image.Resampling.BICUBIC)
