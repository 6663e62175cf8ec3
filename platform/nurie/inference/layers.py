"""A result in layers: its lines, its colours, its background and its mask, each to be edited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

LINE, COLOUR, BACKGROUND, MASK = "line", "colour", "background", "mask"


@dataclass(frozen=True)
class Layer:
    """One layer of a file.

    Args:
        name: Shown by the program that opens the file.
        image: ``L``, ``RGB`` or ``RGBA``, as large as the picture.
        blend: How it lies over the layers below.
        opacity: 0 to 1.
        visible: False for layers that wait to be switched on.
    """

    name: str
    image: Image.Image
    blend: Literal["normal", "multiply"] = "normal"
    opacity: float = 1.0
    visible: bool = True


@dataclass(frozen=True)
class LayeredPicture:
    """A result and what it is made of; all images have one size.

    Args:
        colours: RGB, without the sketch's own lines.
        lines: Grey sketch, dark lines on white.
        mask: Foreground of the sketch, grey; white is foreground.
        line_overlay: How strongly the lines lie over the colours, 0 to 1.
    """

    colours: Image.Image
    lines: Image.Image
    mask: Image.Image
    line_overlay: float

    def flatten(self) -> Image.Image:
        """The result, RGB: the lines multiplied onto the colours."""
        if self.line_overlay == 0:
            return self.colours
        lines = np.asarray(self.lines, dtype=np.float32)[..., None] / 255
        factor = 1 - self.line_overlay * (1 - lines)
        return Image.fromarray((np.asarray(self.colours) * factor).round().astype(np.uint8))

    def layers(self) -> tuple[Layer, ...]:
        """From top to bottom; composed, they are the flattened picture.

        The figure and what surrounds it lie in layers of their own. At the mask's soft edge both
        hold the picture, so that the edge shows no fringe. Lines that were not laid over the result
        are there all the same, switched off.
        """
        figure = self.colours.copy()
        figure.putalpha(self.mask)
        surroundings = self.colours.copy()
        surroundings.putalpha(self.mask.point([255] * 255 + [0]))
        shown = self.line_overlay > 0
        return (
            Layer(MASK, self.mask, visible=False),
            Layer(LINE, self.lines, "multiply", self.line_overlay if shown else 1.0, shown),
            Layer(COLOUR, figure),
            Layer(BACKGROUND, surroundings),
        )
