"""A seeded permutation of any size that is never written down."""

from __future__ import annotations

import hashlib
from typing import TypeVar

import numpy as np

_ROUNDS = 6

Values = TypeVar("Values", int, np.ndarray)
"""One value, or many as uint64."""


class Permutation:
    """A permutation of ``0 .. size - 1``, computed place by place (a Feistel network).

    Any place can be asked for on its own, in constant time and memory, by any process.

    Args:
        size: Number of places, at least 1.
        key: What the permutation depends on.

    Raises:
        ValueError: If the size is below 1.
    """

    def __init__(self, size: int, key: str) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = size
        self._half = max(1, (max(1, size - 1).bit_length() + 1) // 2)
        digest = hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = [int.from_bytes(digest[8 * i : 8 * i + 8]) for i in range(_ROUNDS)]

    def __getitem__(self, place: int) -> int:
        """The value at a place.

        Raises:
            IndexError: If the place is out of range.
        """
        if not 0 <= place < self.size:
            raise IndexError(f"place {place} is not in 0..{self.size - 1}")
        # The network permutes a power of four; walking on until the value is small enough
        # keeps it a permutation of the smaller range.
        value = self._network(place)
        while value >= self.size:
            value = self._network(value)
        return value

    def take(self, places: np.ndarray) -> np.ndarray:
        """The values at many places.

        Args:
            places: Integers from 0 to ``size - 1``, any shape.

        Returns:
            int64, of the same shape.
        """
        values = self._network(places.astype(np.uint64))
        while (outside := values >= self.size).any():
            values[outside] = self._network(values[outside])
        return values.astype(np.int64)

    def _network(self, value: Values) -> Values:
        mask = (1 << self._half) - 1
        left, right = value >> self._half, value & mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return left << self._half | right


def _mix(value: Values) -> Values:
    """The finalizer of SplitMix64 (Steele et al., 2014)."""
    value &= 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31
