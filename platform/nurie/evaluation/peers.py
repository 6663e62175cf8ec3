"""Simple colourings that need no training: what every model should beat, in the same table.

They get what a model gets: sketch and reference. Colours are laid under the sketch's lines.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from nurie.data.lines import xdog
from nurie.evaluation.colour import dominant_colours, nearest_colour, to_lab

Colour = Callable[[np.ndarray, np.ndarray], np.ndarray]
_LINE = 160
_SIDE = 128
_PATCH = 9
_STRIDE = 4
_PLACE_WEIGHT = 0.5


def mean_colour(sketch: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Fill the figure with the mean of the reference's figure, the rest with its background's."""
    figure, reference_figure = _figure_of_sketch(sketch), _figure_of_picture(reference)
    colours = np.empty((*sketch.shape, 3))
    for here, there in ((figure, reference_figure), (~figure, ~reference_figure)):
        there = there if there.any() else np.ones_like(there)
        colours[here] = reference[there].mean(axis=0)
    return _under_lines(colours, sketch)


def palette_transfer(sketch: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Give every region between lines one dominant colour of the reference, matching shares.

    Regions take colours from large to small, each the colour whose share of the reference is least
    used up: a histogram matching by region. Figure and background are matched apart.
    """
    figure, reference_figure = _figure_of_sketch(sketch), _figure_of_picture(reference)
    lab = to_lab(reference)
    colours = np.full((*sketch.shape, 3), 255.0)
    for here, there in ((figure, reference_figure), (~figure, ~reference_figure)):
        there = there if there.any() else np.ones_like(there)
        count, regions = cv2.connectedComponents((here & (sketch >= _LINE)).astype(np.uint8))
        centres = dominant_colours(lab[there])
        index, _ = nearest_colour(lab[there], centres)
        left = np.bincount(index, minlength=len(centres)) / len(index)
        paints = [reference[there][index == number] for number in range(len(centres))]
        sizes = np.bincount(regions.ravel(), minlength=count)[1:]
        for region in np.argsort(-sizes, kind="stable"):
            chosen = int(left.argmax())
            left[chosen] -= sizes[region] / sizes.sum()
            colours[regions == region + 1] = np.median(paints[chosen], axis=0)
    return _under_lines(_fill_lines(colours, sketch), sketch)


def nearest_patch(sketch: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Give every patch of the sketch the colour of the reference's patch with the likest lines.

    Patches are compared by their blurred lines and by their place, at 128 pixels.
    """
    wanted, places = _line_patches(_small(sketch))
    small = _small(reference)
    offered, _ = _line_patches((xdog(small) * 255).astype(np.uint8))
    squared = (wanted**2).sum(1)[:, None] + (offered**2).sum(1) - 2 * wanted @ offered.T
    blurred = cv2.blur(
        small.astype(np.float32), (_STRIDE, _STRIDE), borderType=cv2.BORDER_REPLICATE
    )
    colours = blurred[tuple(places)].reshape(-1, 3)[squared.argmin(axis=1)]
    grid = int(np.sqrt(len(colours)))
    height, width = sketch.shape
    large = cv2.resize(
        colours.reshape(grid, grid, 3), (width, height), interpolation=cv2.INTER_LINEAR
    )
    return _under_lines(large, sketch)


PEERS: dict[str, Colour] = {
    "mean_colour": mean_colour,
    "palette_transfer": palette_transfer,
    "nearest_patch": nearest_patch,
}
"""Name -> colouring of a sketch uint8 [H, W] with a reference uint8 [h, w, 3]."""


def _figure_of_sketch(sketch: np.ndarray) -> np.ndarray:
    from nurie.inference.foreground import sketch_foreground

    return np.asarray(sketch_foreground(Image.fromarray(sketch))) > 127


def _figure_of_picture(picture: np.ndarray) -> np.ndarray:
    from nurie.inference.foreground import picture_foreground

    return np.asarray(picture_foreground(Image.fromarray(picture))) > 127


def _under_lines(colours: np.ndarray, sketch: np.ndarray) -> np.ndarray:
    shown = np.asarray(colours, np.float64) * (sketch[..., None] / 255.0)
    return shown.round().clip(0, 255).astype(np.uint8)


def _fill_lines(colours: np.ndarray, sketch: np.ndarray) -> np.ndarray:
    """Pixels of lines get the colour of the nearest region: no white seams under grey lines."""
    lines = sketch < _LINE
    if lines.all() or not lines.any():
        return colours
    _, nearest = cv2.distanceTransformWithLabels(
        lines.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    nearest = np.asarray(nearest, np.int64)
    by_label = np.empty((int(nearest.max()) + 1, 3))
    by_label[nearest[~lines]] = colours[~lines]
    return by_label[nearest]


def _small(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)


def _line_patches(sketch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features of a grid of patches [N, D], and their centres (rows, columns) [2, n, n]."""
    ink = cv2.GaussianBlur(1 - sketch.astype(np.float32) / 255, (0, 0), 1.5)
    half = _PATCH // 2
    padded = np.pad(ink, half)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (_PATCH, _PATCH))
    centres = np.mgrid[_STRIDE // 2 : _SIDE : _STRIDE, _STRIDE // 2 : _SIDE : _STRIDE]
    patches = windows[tuple(centres)].reshape(centres[0].size, -1)
    places = centres.reshape(2, -1).T / _SIDE * _PLACE_WEIGHT * _PATCH
    return np.concatenate([patches, places.astype(np.float32)], axis=1), centres
