"""Colour: errors by region, palettes wherever they lie, colours on the wrong side of a line.

All in CIELAB (sRGB, white point D65); a difference is CIE 1976, the Euclidean distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from nurie.data.colour_names import linear_to_lab, srgb_to_lab, srgb_to_linear
from nurie.evaluation.fidelity import as_float

_QUANTILES = 256
_DIRECTIONS = 64
_MAX_PIXELS = 2**16
_BIN = 4.0
_CELLS = 128
_RADIUS = 10.0
_BAND = 4
_LINE = 128


def to_lab(image: np.ndarray) -> np.ndarray:
    """CIELAB (sRGB, white point D65), float64 [H, W, 3]: L in 0..100, a and b around -100..100.

    OpenCV's conversion interpolates in a table and is off by up to 0.3; this one is exact.
    """
    if image.dtype == np.uint8:
        return _lab_of_bytes(image.tobytes(), image.shape)
    return srgb_to_lab(as_float(image))


def delta_e(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Colour difference of every pixel, CIE 1976 (Euclidean in CIELAB), [H, W]."""
    if first.shape != second.shape:
        raise ValueError(f"pictures of shapes {first.shape} and {second.shape} are not comparable")
    return np.linalg.norm(to_lab(first) - to_lab(second), axis=-1)


class RegionError(NamedTuple):
    """Colour error of a region, in delta E.

    Attributes:
        mean: Over its pixels.
        p95: The 95th percentile of its pixels: what stands out.
        median_colours: Between the median colours, which ignore lines and stray pixels.
    """

    mean: float
    p95: float
    median_colours: float


def region_errors(
    result: np.ndarray, truth: np.ndarray, labels: np.ndarray, roles: Sequence[str]
) -> dict[str, RegionError]:
    """Colour error of every role that occurs.

    Args:
        result: Picture [H, W, 3].
        truth: Picture [H, W, 3].
        labels: Role index of every pixel, [H, W].
        roles: Name of every index.
    """
    differences = delta_e(result, truth)
    of_result, of_truth = region_medians(result, labels), region_medians(truth, labels)
    errors = {}
    for index, median in of_result.items():
        here = differences[labels == index]
        errors[roles[index]] = RegionError(
            float(here.mean()),
            float(np.quantile(here, 0.95)),
            float(np.linalg.norm(median - of_truth[index])),
        )
    return errors


def region_medians(image: np.ndarray, labels: np.ndarray) -> dict[int, np.ndarray]:
    """Median colour in CIELAB, by channel, of every label that occurs."""
    if image.dtype == labels.dtype == np.uint8:
        return _medians_of_bytes(image.tobytes(), image.shape, labels.tobytes())
    return _medians(to_lab(image), labels)


def palette_distance(
    first: np.ndarray,
    second: np.ndarray,
    first_mask: np.ndarray | None = None,
    second_mask: np.ndarray | None = None,
) -> float:
    """How far apart the colours of two pictures are, wherever in the picture they lie.

    The sliced Wasserstein distance of the pixels in CIELAB, times 2: shifting every colour by a
    delta E of d gives d; moving pixels about gives 0.

    Args:
        first: Picture [H, W, 3].
        second: Picture [h, w, 3].
        first_mask: Pixels of ``first`` that count, bool [H, W] (None, or no pixel set: all).
        second_mask: Pixels of ``second`` that count, bool [h, w].
    """
    projected = [
        _quantiles_by_direction(image, None if mask is None or not mask.any() else mask)
        for image, mask in ((first, first_mask), (second, second_mask))
    ]
    return 2.0 * float(np.abs(projected[0] - projected[1]).mean())


def dominant_colours(
    pixels: np.ndarray, radius: float = _RADIUS, coverage: float = 0.95
) -> np.ndarray:
    """The colours that make up most of a picture, most frequent first.

    Colours are counted in cells of 4 x 4 x 4; the fullest cell and all within ``radius`` of it
    become one colour, then the fullest of the rest. No random start, and the order of the pixels
    does not matter.

    Args:
        pixels: CIELAB, [N, 3], at least one.
        radius: Delta E that one colour spans to each side.
        coverage: Share of the pixels that is enough.

    Returns:
        CIELAB, [K, 3].
    """
    cells = np.floor(pixels / _BIN).astype(np.int64) + _CELLS // 2
    numbers = (cells[:, 0] * _CELLS + cells[:, 1]) * _CELLS + cells[:, 2]
    _, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(inverse, pixels[:, axis]) for axis in range(3)], axis=1)
    means = sums / counts[:, None]
    left = np.ones(len(counts), bool)
    colours = []
    while counts[left].sum() > (1 - coverage) * len(pixels):
        fullest = np.flatnonzero(left)[counts[left].argmax()]
        members = left & (np.linalg.norm(means - means[fullest], axis=1) <= radius)
        colours.append(sums[members].sum(axis=0) / counts[members].sum())
        left &= ~members
    return np.array(colours)


def nearest_colour(pixels: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the nearest of ``colours`` [K, 3] and its delta E, for pixels [N, 3]."""
    best = np.full(len(pixels), np.inf)
    index = np.zeros(len(pixels), np.int64)
    for number, colour in enumerate(colours):
        away = pixels - colour
        squared = np.einsum("ij,ij->i", away, away)
        nearer = squared < best
        best[nearer], index[nearer] = squared[nearer], number
    return index, np.sqrt(best)


def bleeding(result: np.ndarray, labels: np.ndarray, sketch: np.ndarray) -> float | None:
    """Share of the pixels beside a border that have the colour of its other side.

    Looked at are pixels at most 4 and more than 1 pixel from another region, off the lines,
    between regions whose median colours in the result differ by delta E of more than 10. A pixel
    bleeds when it is nearer to the other region's median than to its own. The truth is not needed:
    wrong colours that stay inside their lines do not bleed.

    Args:
        result: Picture [H, W, 3].
        labels: Region of every pixel, [H, W].
        sketch: uint8 [H, W], dark lines on white.

    Returns:
        0..1, or None where no two such regions meet.
    """
    lab = to_lab(result)
    medians = region_medians(result, labels)
    regions = {number: labels == number for number in medians}
    near = {number: _square(region, _BAND) > 0 for number, region in regions.items()}
    paper = sketch >= _LINE
    looked_at = bled = 0
    for own, region in regions.items():
        inner = paper & (_square(~region, 1) == 0)
        for other in regions:
            if own == other or np.linalg.norm(medians[own] - medians[other]) <= _RADIUS:
                continue
            pixels = lab[inner & near[other]]
            looked_at += len(pixels)
            # Nearer to the other median: beyond the plane half-way between both.
            normal = medians[other] - medians[own]
            halfway = normal @ (medians[other] + medians[own]) / 2
            bled += int((pixels @ normal > halfway).sum())
    return bled / looked_at if looked_at else None


def background_leak(
    result: np.ndarray, mask: np.ndarray, reference: np.ndarray, reference_mask: np.ndarray
) -> float | None:
    """Share of the foreground that has a colour of the reference's background.

    A pixel counts when it is within delta E 10 of a dominant colour of the reference's background
    and no dominant colour of its foreground is nearer. 2 pixels along the border are left out.

    Args:
        result: Picture [H, W, 3].
        mask: Foreground of the sketch, bool [H, W].
        reference: Picture [h, w, 3].
        reference_mask: Foreground of the reference, bool [h, w].

    Returns:
        0..1, or None where one of the regions is empty.
    """
    inside = mask & (_square(~mask, 2) == 0)
    if not inside.any() or not reference_mask.any() or reference_mask.all():
        return None
    lab = to_lab(reference)
    foreground, background = (
        dominant_colours(lab[region]) for region in (reference_mask, ~reference_mask)
    )
    pixels = to_lab(result)[inside]
    _, to_background = nearest_colour(pixels, background)
    # The rest is too far from the background to count, however far the foreground is.
    near = to_background <= _RADIUS
    _, to_foreground = nearest_colour(pixels[near], foreground)
    return float((to_background[near] < to_foreground).sum() / len(pixels))


@lru_cache(maxsize=4)
def _lab_of_bytes(pixels: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """CIELAB of a picture's bytes, kept for the next metric of the same picture; read-only."""
    lab = linear_to_lab(_light_of_byte()[np.frombuffer(pixels, np.uint8).reshape(shape)])
    lab.setflags(write=False)
    return lab


@lru_cache(maxsize=4)
def _medians_of_bytes(
    pixels: bytes, shape: tuple[int, ...], labels: bytes
) -> dict[int, np.ndarray]:
    """Medians of a picture's bytes, kept for the next metric of the same picture."""
    where = np.frombuffer(labels, np.uint8).reshape(shape[:2])
    return _medians(_lab_of_bytes(pixels, shape), where)


def _medians(lab: np.ndarray, labels: np.ndarray) -> dict[int, np.ndarray]:
    # Channels lie together: the median of strided values takes twice as long.
    channels = np.ascontiguousarray(lab.reshape(-1, 3).T)
    flat = labels.ravel()
    return {int(n): np.median(channels[:, flat == n], axis=1) for n in np.unique(flat)}


@lru_cache(maxsize=1)
def _light_of_byte() -> np.ndarray:
    """Light of the 256 values of a byte: a power for every pixel would cost the most."""
    return srgb_to_linear(np.arange(256) / 255.0)


def _square(region: np.ndarray, reach: int) -> np.ndarray:
    """The region grown by ``reach`` pixels to every side, uint8 [H, W]."""
    return cv2.dilate(region.astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8))


def _quantiles_by_direction(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Evenly spaced quantiles of the masked pixels' colours along every direction, [64, 256]."""
    if image.dtype == np.uint8:
        return _quantiles_of_bytes(
            image.tobytes(), image.shape, None if mask is None else mask.tobytes()
        )
    return _quantiles(to_lab(image), mask)


@lru_cache(maxsize=16)
def _quantiles_of_bytes(pixels: bytes, shape: tuple[int, ...], mask: bytes | None) -> np.ndarray:
    """Quantiles of a picture's bytes: a truth is compared with many results."""
    where = None if mask is None else np.frombuffer(mask, bool).reshape(shape[:2])
    return _quantiles(_lab_of_bytes(pixels, shape), where)


def _quantiles(lab: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Of at most 65 536 pixels, evenly spaced."""
    colours = lab.reshape(-1, 3) if mask is None else lab[mask]
    colours = colours[:: -(-len(colours) // _MAX_PIXELS)]
    ordered = _directions() @ colours.T.astype(np.float32)
    ordered.sort(axis=1)
    places = (np.arange(_QUANTILES) + 0.5) / _QUANTILES * (len(colours) - 1)
    below = places.astype(np.int64)
    share = (places - below).astype(np.float32)
    above = np.minimum(below + 1, len(colours) - 1)
    return ordered[:, below] * (1 - share) + ordered[:, above] * share


@lru_cache(maxsize=1)
def _directions() -> np.ndarray:
    """Unit vectors spread evenly over half of the sphere (a Fibonacci spiral), float32 [64, 3]."""
    index = np.arange(_DIRECTIONS) + 0.5
    height = index / _DIRECTIONS
    radius = np.sqrt(1.0 - height**2)
    angle = np.pi * (1.0 + np.sqrt(5.0)) * index
    vectors = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)
    return vectors.astype(np.float32)
