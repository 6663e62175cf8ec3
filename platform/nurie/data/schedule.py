"""Which sample stands at which place of an endless training run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from nurie.data.permutation import Permutation

BATCHES_PER_CYCLE = 1000
"""Batches after which every bucket has had its share exactly."""


def rank_rows(batch_size: int, rank: int, num_workers: int) -> range:
    """Places of a worker's samples within a batch; shares differ by one at most."""
    return range(rank * batch_size // num_workers, (rank + 1) * batch_size // num_workers)


class SampleSchedule:
    """One seeded permutation of all samples per epoch, open-ended and random access.

    Any worker can ask for any position, so a run resumes exactly and the order does not depend
    on the number of workers. Nothing is kept in memory, whatever the size of the set.

    Args:
        num_samples: Size of the set, at least 1.
        seed: Seed of all permutations.

    Raises:
        ValueError: If the set is empty.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        self.num_samples = num_samples
        self.seed = seed
        self._permutation = lru_cache(maxsize=4)(self._of_epoch)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Return ``(epoch, index)`` of a position.

        Args:
            position: Place in the run, counted from 0 over all epochs.

        Raises:
            ValueError: If the position is negative.
        """
        if position < 0:
            raise ValueError(f"position must not be negative, got {position}")
        epoch, place = divmod(position, self.num_samples)
        return epoch, self._permutation(epoch)[place]

    def _of_epoch(self, epoch: int) -> Permutation:
        return Permutation(self.num_samples, f"{self.seed}/{epoch}")


class BatchSchedule:
    """Rows of every batch, each batch from one bucket, buckets by their share of the rows.

    Batches come in cycles; a cycle holds every bucket's share, in an order of its own. Within a
    bucket the rows follow a ``SampleSchedule``, so no row is left over at an epoch's end.

    Args:
        buckets: The rows of every bucket, none empty.
        batch_size: Rows of a batch.
        seed: Seed of all permutations.

    Raises:
        ValueError: If there is no bucket or one is empty.
    """

    def __init__(self, buckets: Sequence[range], batch_size: int, seed: int) -> None:
        if not buckets:
            raise ValueError("buckets: at least one is needed")
        self._buckets = buckets
        self._batch_size = batch_size
        self._seed = seed
        self._schedules = [SampleSchedule(len(rows), seed) for rows in buckets]
        self._shares = _shares([len(rows) for rows in buckets])
        self._turns = lru_cache(maxsize=4)(self._turns_of_cycle)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Return ``(epoch of the row's bucket, row)`` of a position.

        Args:
            position: Place in the run: batch times its size plus place in the batch.
        """
        batch, place = divmod(position, self._batch_size)
        cycle, turn = divmod(batch, sum(self._shares))
        bucket, earlier = self._turns(cycle)[turn]
        number = cycle * self._shares[bucket] + earlier
        epoch, index = self._schedules[bucket][number * self._batch_size + place]
        return epoch, self._buckets[bucket][index]

    def _turns_of_cycle(self, cycle: int) -> list[tuple[int, int]]:
        """Of every batch of a cycle its bucket, and how many of this bucket came before."""
        sorted_turns = [bucket for bucket, share in enumerate(self._shares) for _ in range(share)]
        order = Permutation(len(sorted_turns), f"{self._seed}/cycle/{cycle}")
        seen: Counter[int] = Counter()
        turns = []
        for place in range(len(sorted_turns)):
            bucket = sorted_turns[order[place]]
            turns.append((bucket, seen[bucket]))
            seen[bucket] += 1
        return turns


def _shares(sizes: list[int]) -> list[int]:
    """Batches per cycle of every bucket, at least one each."""
    if len(sizes) == 1:
        return [1]
    return [max(1, round(BATCHES_PER_CYCLE * size / sum(sizes))) for size in sizes]
