"""Finding pictures that are nearly the same: they must not be each other's mismatched reference."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

HASH_SIDE = 16
HASH_BITS = HASH_SIDE * HASH_SIDE
MAX_DISTANCE = 15
NEIGHBOURS = 64
"""Pictures that one is compared with, at most, to either side of it: flat ones fill some bands."""
PAIRS_AT_ONCE = 2**20


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


def near_duplicate_groups(hashes: np.ndarray, max_distance: int) -> np.ndarray:
    """Group pictures whose hashes differ in few bits, directly or through others.

    Args:
        hashes: The bytes of one ``difference_hash`` per picture, uint8 [N, 32].
        max_distance: Bits that may differ, at most 15: of one band more than that, two such hashes
            have at least one in common, so that only pictures that share a band are compared.

    Returns:
        Per picture, the number of the first picture of its group.

    Raises:
        ValueError: If ``max_distance`` is out of range.
    """
    if not 0 <= max_distance <= MAX_DISTANCE:
        raise ValueError(f"max_distance must be from 0 to {MAX_DISTANCE}, got {max_distance}")
    whole = np.ascontiguousarray(hashes).view(f"V{HASH_BITS // 8}").ravel()
    _, first, same = np.unique(whole, return_index=True, return_inverse=True)
    words = np.ascontiguousarray(hashes[first]).view(">u8").astype(np.uint64)
    pairs = [(first[same], np.arange(len(hashes)))]
    width = HASH_BITS // (max_distance + 1)
    # Hashes that are different differ in a bit at least.
    for band in range(max_distance + 1 if max_distance else 0):
        for one, other in _alike_in_band(words, band * width, width, max_distance):
            pairs.append((first[one], first[other]))
    ones, others = (np.concatenate(numbers) for numbers in zip(*pairs, strict=True))
    return connected(len(hashes), ones, others)


def connected(count: int, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Number of the first member of everyone's group, given pairs of ``0 .. count - 1``."""
    graph = coo_array((np.ones(len(ones), bool), (ones, others)), shape=(count, count))
    _, groups = connected_components(graph, directed=False)
    _, first = np.unique(groups, return_index=True)
    return first[groups]


def _alike_in_band(
    words: np.ndarray, start: int, width: int, max_distance: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs that are alike among neighbours of equal bits from ``start`` on.

    Hashes are sorted by 64 bits that begin with the band, so that of a band that many flat pictures
    share, the most similar ones are neighbours.
    """
    word, shift = divmod(start, 64)
    key = words[:, word] << np.uint64(shift)
    if shift:
        key |= words[:, (word + 1) % words.shape[1]] >> np.uint64(64 - shift)
    order = np.argsort(key, kind="stable")
    band = key[order] >> np.uint64(64 - min(width, 64))
    for step in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
        places = np.flatnonzero(band[:-step] == band[step:])
        if len(places) == 0:
            return
        for part in np.array_split(places, -(-len(places) // PAIRS_AT_ONCE)):
            one, other = order[part], order[part + step]
            alike = _alike(words[one], words[other], max_distance)
            yield one[alike], other[alike]


def _alike(ones: np.ndarray, others: np.ndarray, max_distance: int) -> np.ndarray:
    """Whether two hashes, uint64 [..., 4], are those of nearly the same picture."""
    distance = np.bitwise_count(ones ^ others).sum(axis=-1, dtype=np.int64)
    # Small figures on flat paper have few bits: a quarter of them must not differ either.
    bits = np.bitwise_count(ones | others).sum(axis=-1, dtype=np.int64)
    return (distance <= max_distance) & (4 * distance <= bits)
