"""Averages with intervals, and whether two runs differ by more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

_RESAMPLES = 2000
_FLIPS = 20_000
_CHUNK = 2**22


class Interval(NamedTuple):
    """A mean with its 95% bootstrap interval over n pictures."""

    mean: float
    low: float
    high: float
    n: int


class Difference(NamedTuple):
    """How the pictures of one run differ from the same pictures of another.

    Attributes:
        mean: Mean of second minus first.
        low: Lower end of its 95% bootstrap interval.
        high: Upper end.
        p: Two-sided probability of a mean this large if signs were chance.
        n: Pictures.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean and 95% percentile interval, resampling pictures; their order has no effect.

    Raises:
        ValueError: There are no values.
    """
    data = np.sort(np.asarray(values, np.float64))
    if data.size == 0:
        raise ValueError("no values to average")
    rng = np.random.default_rng(seed)
    rounds = max(1, min(_RESAMPLES, _CHUNK // data.size))
    means = [
        data[rng.integers(data.size, size=(min(rounds, _RESAMPLES - start), data.size))].mean(1)
        for start in range(0, _RESAMPLES, rounds)
    ]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return Interval(float(data.mean()), float(low), float(high), int(data.size))


def bootstrap_crossed(values: np.ndarray, seed: int = 0) -> Interval:
    """Mean and 95% percentile interval of repeated runs, resampling runs and pictures.

    Args:
        values: [runs, pictures].
        seed: Of the resampling.

    Raises:
        ValueError: There are no values.
    """
    if values.size == 0:
        raise ValueError("no values to average")
    data = np.asarray(values, np.float64)
    data = data[:, np.lexsort(data)]
    runs, pictures = data.shape
    rng = np.random.default_rng(seed)
    weights = [
        rng.multinomial(size, np.full(size, 1 / size), _RESAMPLES) / size
        for size in (runs, pictures)
    ]
    means = np.einsum("br,rp,bp->b", weights[0], data, weights[1], optimize=True)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(data.mean()), float(low), float(high), pictures)


def compare_paired(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Difference:
    """Difference of paired values with a sign-flip test (Fisher's randomisation test).

    Args:
        first: Values of one run.
        second: Values of the other, picture by picture.
        seed: Of resampling and flips.

    Raises:
        ValueError: There are no values, or not as many of both.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values are no pairs")
    differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    interval = bootstrap(differences.tolist(), seed)
    data = np.sort(differences)
    rng = np.random.default_rng(seed)
    rounds = max(1, min(_FLIPS, _CHUNK // data.size))
    as_large = 0
    limit = abs(interval.mean) * (1 - 1e-12)
    for start in range(0, _FLIPS, rounds):
        signs = rng.integers(2, size=(min(rounds, _FLIPS - start), data.size)) * 2 - 1
        as_large += int((np.abs((signs * data).mean(1)) >= limit).sum())
    p = (1 + as_large) / (1 + _FLIPS)
    return Difference(interval.mean, interval.low, interval.high, p, interval.n)


def adjust(probabilities: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction: probabilities that stay honest although many were looked at."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    ordered = sorted(probabilities, key=lambda name: probabilities[name])
    for rank, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * probabilities[name]))
        adjusted[name] = highest
    return adjusted
