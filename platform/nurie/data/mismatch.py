"""Choosing a mismatched reference: another picture, never a relative of the sample."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa

from nurie.data.colour_histogram import NUM_COLOURS, colour_likeness
from nurie.data.permutation import Permutation

MismatchStrategy = Literal["uniform", "tag_distance", "hard"]

NUM_CANDIDATES: dict[MismatchStrategy, int] = {"uniform": 1, "tag_distance": 6, "hard": 24}
"""Unrelated pictures looked at per choice, at most; the first that suits well enough wins, else the
one that suits best."""
POOL_SHARE = 8
"""Of a small set only an eighth is looked at, else the same few would always suit best."""
MAX_OVERLAP = 0.2
"""Different enough: two pictures share at most this part of their tags (Jaccard). Always taking the
most different one would take a few odd pictures over and over."""
MIN_LIKENESS = 0.7
"""Similar enough: two pictures share at least this part of their colours."""
MAX_DRAWS = 64
"""Draws before the exhaustive search; they only run out when one group holds nearly all rows."""


class MismatchSampler:
    """Chooses mismatched references from the sample's own split.

    The choice is a function of (seed, epoch, sample id) and of the set of rows, not of their
    order, of the batch or of the number of workers. A choice costs a few hashes, whatever the
    size of the set.

    Args:
        index: Table with the columns ``sample_id``, ``group_id``, ``palette_id``, ``tags`` and
            ``split``, for ``hard`` also ``colours`` (``nurie.data.colour_histogram``).
        seed: Seed of all choices.
        strategy: Of a few unrelated pictures, ``tag_distance`` takes one whose tags are different,
            ``hard`` one whose colours are similar (its shapes are not: it is no relative);
            ``uniform`` takes the first.

    Raises:
        ValueError: If a sample id occurs twice or the strategy is unknown.
    """

    def __init__(
        self, index: pa.Table, seed: int, strategy: MismatchStrategy = "tag_distance"
    ) -> None:
        if strategy not in NUM_CANDIDATES:
            raise ValueError(
                f"strategy must be one of {', '.join(NUM_CANDIDATES)}, got {strategy!r}"
            )
        self.seed = seed
        self.strategy: MismatchStrategy = strategy
        self.num_candidates = NUM_CANDIDATES[strategy]
        ordered = index.sort_by("sample_id")
        self._ids: list[str] = ordered["sample_id"].to_pylist()
        self._row_of = {sample_id: row for row, sample_id in enumerate(self._ids)}
        if len(self._row_of) != len(self._ids):
            raise ValueError(f"duplicate sample_id {_first_duplicate(self._ids)!r}")
        self._tags = [frozenset(tags) for tags in ordered["tags"].to_pylist()]
        self._colours = np.empty((0, NUM_COLOURS), np.float32)
        if strategy == "hard":
            self._colours = np.array(ordered["colours"].to_pylist(), np.float32)
        self._group = _codes(ordered["group_id"])
        self._palette = _codes(ordered["palette_id"])
        split = _codes(ordered["split"])
        self._rows_of_split = [np.flatnonzero(split == code) for code in range(split.max() + 1)]
        self._split = split.tolist()
        self._relatives = list(zip(self._group.tolist(), self._palette.tolist(), strict=True))
        self._search = lru_cache(maxsize=64)(self._unrelated_rows)
        self._permutation = lru_cache(maxsize=1024)(self._new_permutation)

    def choose(self, sample_id: str, epoch: int) -> str:
        """Return the mismatched reference of a sample in an epoch.

        Raises:
            KeyError: If the sample is not in the index.
            ValueError: If its split holds no picture of another group and another palette.
        """
        row = self._row_of[sample_id]
        candidates = self._candidates(row, epoch)
        if self.strategy == "hard":
            likeness = colour_likeness(self._colours[row], self._colours[candidates])
            best, suits = int(np.argmax(likeness)), likeness >= MIN_LIKENESS
        else:
            overlaps = [_overlap(self._tags[row], self._tags[other]) for other in candidates]
            best, suits = int(np.argmin(overlaps)), np.array(overlaps) <= MAX_OVERLAP
        return self._ids[candidates[int(np.argmax(suits)) if suits.any() else best]]

    def _candidates(self, row: int, epoch: int) -> list[int]:
        """The first unrelated pictures among the row's places in this epoch's permutations.

        A permutation gives every picture away once, so that none is taken far more often than
        others.
        """
        split = self._split[row]
        pool = self._rows_of_split[split]
        place = int(np.searchsorted(pool, row))
        enough = min(self.num_candidates, max(2, len(pool) // POOL_SHARE))
        found: list[int] = []
        for draw in range(MAX_DRAWS):
            other = int(pool[self._permutation(split, epoch, draw)[place]])
            if self._unrelated(row, other):
                found.append(other)
                if len(found) == enough:
                    return found
        return found or [self._searched(row, epoch)]

    def _new_permutation(self, split: int, epoch: int, draw: int) -> Permutation:
        return Permutation(len(self._rows_of_split[split]), f"{self.seed}/{epoch}/{draw}")

    def _unrelated(self, row: int, other: int) -> bool:
        group, palette = self._relatives[row]
        other_group, other_palette = self._relatives[other]
        return group != other_group and palette != other_palette

    def _searched(self, row: int, epoch: int) -> int:
        pool = self._search(self._split[row], *self._relatives[row])
        if len(pool) == 0:
            raise ValueError(
                f"no mismatched reference for sample {self._ids[row]!r}: all "
                f"{len(self._rows_of_split[self._split[row]])} pictures of its split share its "
                "group or its palette; add pictures or, for characters, lower "
                "characters_per_palette"
            )
        place = int(np.searchsorted(self._rows_of_split[self._split[row]], row))
        return int(pool[Permutation(len(pool), f"{self.seed}/{epoch}/search")[place % len(pool)]])

    def _unrelated_rows(self, split: int, group: int, palette: int) -> np.ndarray:
        pool = self._rows_of_split[split]
        return pool[(self._group[pool] != group) & (self._palette[pool] != palette)]


def _overlap(tags: frozenset[str], others: frozenset[str]) -> float:
    union = len(tags | others)
    return len(tags & others) / union if union else 0.0


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)


def _first_duplicate(ids: list[str]) -> str:
    return next(a for a, b in pairwise(ids) if a == b)
