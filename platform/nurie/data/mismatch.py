"""Choosing a mismatched reference: another picture, never a relative of the sample."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions while it is imported)

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

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
ROWS_AT_ONCE = 2**16
"""Rows whose references are chosen together: what that takes does not grow with the set."""


class MismatchSampler:
    """Chooses mismatched references from the sample's own split.

    The choice is a function of (seed, epoch, sample id) and of the set of rows, not of their
    order, of the batch or of the number of workers. A choice costs a few hashes, whatever the
    size of the set; what is kept of a row is its tags as numbers and 30 bytes.

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
        self._ids = index["sample_id"]
        ordered = _sorted_by_id(self._ids)
        self._group, self._palette = _codes(index["group_id"]), _codes(index["palette_id"])
        self._split = _codes(index["split"])
        self._pools = [
            ordered[self._split[ordered] == code] for code in range(self._split.max() + 1)
        ]
        self._place = np.empty(index.num_rows, np.int32)
        for pool in self._pools:
            self._place[pool] = np.arange(len(pool))
        self._tags = _tag_matrix(index["tags"]) if strategy == "tag_distance" else None
        self._colours = _colour_matrix(index["colours"]) if strategy == "hard" else None
        self._strangers = lru_cache(maxsize=64)(self._of_other_groups)

    def choose(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        """Return the mismatched references of samples in an epoch.

        Args:
            rows: Rows of the index.
            epoch: Number of the epoch.

        Returns:
            Rows of the index, int64, one for each.

        Raises:
            ValueError: If a sample's split holds no picture of another group and another palette.
        """
        chosen = np.empty(len(rows), np.int64)
        for split in range(len(self._pools)):
            here = np.flatnonzero(self._split[rows] == split)
            for start in range(0, len(here), ROWS_AT_ONCE):
                part = here[start : start + ROWS_AT_ONCE]
                chosen[part] = self._choose_in(split, rows[part], epoch)
        return chosen

    def _choose_in(self, split: int, rows: np.ndarray, epoch: int) -> np.ndarray:
        """Choose among the rows' places in this epoch's permutations.

        A permutation gives every picture away once, so that none is taken far more often than
        others.
        """
        pool, places = self._pools[split], self._place[rows]
        enough = min(NUM_CANDIDATES[self.strategy], max(2, len(pool) // POOL_SHARE))
        best = np.full(len(rows), -1)
        best_fit, num_seen = np.full(len(rows), -np.inf), np.zeros(len(rows), np.int64)
        undecided = np.arange(len(rows))
        for draw in range(MAX_DRAWS):
            permutation = Permutation(len(pool), f"{self.seed}/{epoch}/{draw}")
            others = pool[permutation.take(places[undecided])]
            unrelated = self._unrelated(rows[undecided], others)
            these, others = undecided[unrelated], others[unrelated]
            fit, suits = self._fit(rows[these], others)
            better = fit > best_fit[these]
            best[these[better]], best_fit[these[better]] = others[better], fit[better]
            num_seen[these] += 1
            decided = np.zeros(len(rows), bool)
            decided[these] = suits | (num_seen[these] == enough)
            undecided = undecided[~decided[undecided]]
            if len(undecided) == 0:
                break
        for place in np.flatnonzero(best < 0).tolist():
            best[place] = self._searched(int(rows[place]), epoch)
        return best

    def _unrelated(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        other_group = self._group[rows] != self._group[others]
        return other_group & (self._palette[rows] != self._palette[others])

    def _fit(self, rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How well each of the others suits its row (more is better), and whether well enough."""
        if self._colours is not None:
            likeness = colour_likeness(self._colours[rows], self._colours[others])
            return likeness, likeness >= MIN_LIKENESS
        if self._tags is not None:
            overlap = _overlap(self._tags[rows], self._tags[others])
            return -overlap, overlap <= MAX_OVERLAP
        return np.zeros(len(rows)), np.ones(len(rows), bool)

    def _searched(self, row: int, epoch: int) -> int:
        split = int(self._split[row])
        pool = self._strangers(split, int(self._group[row]))
        pool = pool[self._palette[pool] != self._palette[row]]
        if len(pool) == 0:
            raise ValueError(
                f"no mismatched reference for sample {self._ids[row].as_py()!r}: all "
                f"{len(self._pools[split])} pictures of its split share its group or its palette; "
                "add pictures or, for characters, lower characters_per_palette"
            )
        permutation = Permutation(len(pool), f"{self.seed}/{epoch}/search")
        return int(pool[permutation[int(self._place[row]) % len(pool)]])

    def _of_other_groups(self, split: int, group: int) -> np.ndarray:
        pool = self._pools[split]
        return pool[self._group[pool] != group]


def _sorted_by_id(ids: pa.ChunkedArray) -> np.ndarray:
    order = pc.sort_indices(ids)
    ordered = ids.take(order)
    twice = pc.equal(ordered[1:], ordered[:-1])
    if pc.any(twice).as_py():
        raise ValueError(f"duplicate sample_id {ordered[1:].filter(twice)[0].as_py()!r}")
    return order.to_numpy().astype(np.int32)


def _tag_matrix(tags: pa.ChunkedArray) -> csr_array:
    """Rows of ones where a sample has a tag."""
    codes = _codes(pc.list_flatten(tags))
    lengths = pc.list_value_length(tags).to_numpy()
    starts = np.concatenate([[0], np.cumsum(lengths)])
    shape = (len(tags), int(codes.max(initial=0)) + 1)
    matrix = csr_array((np.ones(len(codes), np.int8), codes, starts), shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def _colour_matrix(colours: pa.ChunkedArray) -> np.ndarray:
    return pc.list_flatten(colours).to_numpy().astype(np.float32).reshape(-1, NUM_COLOURS)


def _overlap(tags: csr_array, others: csr_array) -> np.ndarray:
    """Jaccard index of every row of tags with its row of others; 0 for two without tags."""
    common = np.asarray(tags.multiply(others).sum(axis=1)).ravel()
    union = np.diff(tags.indptr) + np.diff(others.indptr) - common
    return common / np.maximum(union, 1)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """Numbers of equal values, int32."""
    values = column.combine_chunks()
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode()
    return values.indices.to_numpy(zero_copy_only=False)
