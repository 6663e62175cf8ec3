"""References that tempt: other shapes in the same colours.

Most are painted from the very pixels of the reference's figure, so that the palette stays and only
its place changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nurie.data.colour_names import srgb_to_lab
from nurie.data.examples import load_backgrounds
from nurie.evaluation.measure import Reference

Alter = Callable[[Reference, np.random.Generator], Reference]
_LETTERS = "ABCDEFGHKLMNPRSTUVXYZ"
_SQUARE_SHARE = 1 / 8


def pose(reference: Reference, rng: np.random.Generator) -> Reference:
    """The reference mirrored, turned by up to 20 degrees and made a little smaller."""
    height, width = reference.image.shape[:2]
    angle = float(rng.uniform(10, 20) * rng.choice([-1, 1]))
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, float(rng.uniform(0.75, 0.9)))
    flipped = np.ascontiguousarray(reference.image[:, ::-1])
    turned = cv2.warpAffine(
        flipped, matrix, (width, height), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE
    )
    if reference.mask is None:
        return Reference(turned)
    mask = np.ascontiguousarray(reference.mask[:, ::-1].astype(np.uint8))
    moved = cv2.warpAffine(mask, matrix, (width, height), flags=cv2.INTER_NEAREST)
    return Reference(turned, moved > 0)


def subject(reference: Reference, rng: np.random.Generator) -> Reference:
    """Another subject, a landscape, in the reference's colours."""
    scenes = _scenes()
    scene = scenes[int(rng.integers(len(scenes)))]
    height, width = reference.image.shape[:2]
    return _paint(cv2.resize(scene, (width, height), interpolation=cv2.INTER_AREA), reference)


def text(reference: Reference, rng: np.random.Generator) -> Reference:
    """The reference with large letters over it, in its own darkest and lightest colour."""
    height = reference.image.shape[0]
    colours = _colours_by_lightness(reference)
    picture = Image.fromarray(reference.image)
    draw = ImageDraw.Draw(picture)
    size = max(8, height // 4)
    font = ImageFont.load_default(size)
    for row, top in enumerate(range(0, height - size // 2, size)):
        letters = "".join(rng.choice(list(_LETTERS), size=12))
        colour = colours[-1] if row % 2 else colours[0]
        draw.text((-size // 4, top), letters, tuple(int(c) for c in colour), font)
    return Reference(np.asarray(picture), reference.mask)


def edges(reference: Reference, rng: np.random.Generator) -> Reference:
    """A chessboard of the reference's colours: strong edges in a grid."""
    height, width = reference.image.shape[:2]
    side = max(2, round(min(height, width) * _SQUARE_SHARE))
    rows, columns = np.indices((height, width)) // side
    shade = rng.random((rows.max() + 1, columns.max() + 1)) * 0.5
    return _paint((rows + columns) % 2 + shade[rows, columns], reference)


def noise(reference: Reference, rng: np.random.Generator) -> Reference:
    """The reference's colours without any place: every pixel anywhere."""
    return _paint(rng.random(reference.image.shape[:2]), reference)


def flat(reference: Reference, rng: np.random.Generator) -> Reference:
    """Nothing but the mean colour of the reference's figure."""
    mean = _figure(reference).mean(axis=0).round().astype(np.uint8)
    return Reference(np.broadcast_to(mean, reference.image.shape).copy())


ALTERATIONS: dict[str, Alter] = {
    "pose": pose,
    "subject": subject,
    "text": text,
    "edges": edges,
    "noise": noise,
    "flat": flat,
}
"""Type of entanglement -> what makes its reference. Two more types need other samples or seeds:
``silhouette`` (another character in the reference's palette) and ``other_seed`` (the same reference
with other noise: how much shapes change by chance)."""


def _figure(reference: Reference) -> np.ndarray:
    """Pixels of the figure, uint8 [N, 3]; of everything where no figure is known."""
    if reference.mask is None or not reference.mask.any():
        return reference.image.reshape(-1, 3)
    return reference.image[reference.mask]


def _colours_by_lightness(reference: Reference) -> np.ndarray:
    pixels = _figure(reference)
    return pixels[np.argsort(srgb_to_lab(pixels / 255.0)[:, 0], kind="stable")]


def _paint(field: np.ndarray, reference: Reference) -> Reference:
    """A picture as light and dark as ``field`` [H, W], in the figure's colours and their shares."""
    colours = _colours_by_lightness(reference)
    count = field.size
    picked = colours[(np.arange(count) * len(colours)) // count]
    picture = np.empty((count, 3), np.uint8)
    picture[np.argsort(field.ravel(), kind="stable")] = picked
    return Reference(picture.reshape(*field.shape, 3))


@cache
def _scenes() -> tuple[np.ndarray, ...]:
    """Luma of the built-in landscapes, uint8 [H, W]."""
    return tuple(
        cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for _, image in sorted(load_backgrounds().items())
    )
