"""Finding pictures that are nearly the same: they must not be each other's mismatched reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

HASH_SIDE = 16
HASH_BITS = HASH_SIDE * HASH_SIDE
_BANDS = 16
_COMPARED = 64
"""Different members of a band that a picture is compared with: flat pictures fill some bands."""


def difference_hash(image: np.ndarray) -> bytes:
    """A picture's difference hash: whether brightness rises from each cell to the next.

    Scaling, recompression and brightness change few of its bits.

    Args:
        image: sRGB picture, uint8 [H, W, 3].

    Returns:
        32 bytes, 16 rows of 16 bits.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA)
    # A step of less than two grey levels is noise: flat parts give zeros.
    rises = small[:, 1:].astype(np.int16) - small[:, :-1] >= 2
    return np.packbits(rises).tobytes()


def near_duplicate_groups(hashes: Sequence[bytes], max_distance: int) -> list[int]:
    """Group pictures whose hashes differ in few bits, directly or through others.

    Args:
        hashes: One ``difference_hash`` per picture.
        max_distance: Bits that may differ, at most 15: two such hashes have one of 16 bands of 16
            bits in common, so that only pictures that share a band are compared.

    Returns:
        Per picture, the number of the first picture of its group.

    Raises:
        ValueError: If ``max_distance`` is out of range.
    """
    if not 0 <= max_distance < _BANDS:
        raise ValueError(f"max_distance must be from 0 to {_BANDS - 1}, got {max_distance}")
    numbers = [int.from_bytes(value) for value in hashes]
    first_of: dict[int, int] = {}
    pairs: list[tuple[int, int]] = []
    bands: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for this, value in enumerate(numbers):
        same = first_of.setdefault(value, this)
        if same != this:
            pairs.append((same, this))
            continue
        for band in range(_BANDS):
            members = bands[band, value >> (band * _BANDS) & 0xFFFF]
            for other in members[:_COMPARED]:
                if _alike(value, numbers[other], max_distance):
                    pairs.append((other, this))
            members.append(this)
    return connected(len(hashes), pairs)


def _alike(one: int, other: int, max_distance: int) -> bool:
    distance = (one ^ other).bit_count()
    # Small figures on flat paper have few bits: a quarter of them must not differ either.
    return distance <= max_distance and 4 * distance <= (one | other).bit_count()


def connected(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Number of the first member of everyone's group, given pairs of ``0 .. count - 1``."""
    parents = list(range(count))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parents[high] = low
    return [root(number) for number in range(count)]
