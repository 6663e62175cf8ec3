"""What can be made of a picture before it is coloured: its lines, the mask of its figure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from nurie.data.lines import sketch_from_image
from nurie.inference.foreground import find_figure
from nurie.inference.images import to_rgb
from nurie.inference.png import write_png

_LINE_STYLE = "xdog"


def draw_lines(picture: Image.Image) -> bytes:
    """Lines along the edges of a picture: a grey PNG, 255 is paper; slow.

    Args:
        picture: A checked picture.
    """
    pixels = np.asarray(to_rgb(picture))
    # The same picture gives the same lines.
    sketch = sketch_from_image(pixels, _LINE_STYLE, np.random.default_rng(0))
    return write_png(Image.fromarray((sketch * 255).round().astype(np.uint8)))


def find_mask(picture: Image.Image) -> bytes:
    """The mask that a sketch gets by itself, or the alpha of a cut-out picture; slow.

    Args:
        picture: A checked picture.

    Returns:
        A grey PNG, 255 on the figure.
    """
    return write_png(find_figure(picture))


KINDS: dict[str, Callable[[Image.Image], bytes]] = {"line": draw_lines, "mask": find_mask}
