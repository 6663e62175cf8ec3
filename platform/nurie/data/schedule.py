"""Which sample stands at which place of an endless training run."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


class SampleSchedule:
    """One seeded permutation of all samples per epoch, open-ended and random access.

    Any worker can ask for any position, so a run resumes exactly and the order does not depend
    on the number of workers.

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
        return epoch, int(_permutation(self.num_samples, self.seed, epoch)[place])


@lru_cache(maxsize=4)
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)
