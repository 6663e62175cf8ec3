"""Distances between sets of pictures, from the features that a network gives them.

FID (Heusel et al. 2017) compares mean and covariance. Its estimate is biased upwards for few
pictures, so that sets of different size are not comparable. KID (Bińkowski et al. 2018) is unbiased
at any size: prefer it below 10 000 pictures.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nurie.evaluation.statistics import Interval

ENOUGH_FOR_FID = 10_000
"""Pictures from which FID may be read."""

_MAX_KERNEL_ROWS = 2000
_KERNEL_RESAMPLES = 1000
_FRECHET_RESAMPLES = 50


def kernel_distance(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Interval:
    """KID: squared maximum mean discrepancy, kernel ``(x.y / d + 1)^3``, unbiased.

    Above 2000 pictures a set is cut into equal parts whose distances are averaged. The interval
    resamples pictures of both sets and leaves out pairs of a picture with itself.

    Args:
        first: Features, [n, d], n of 2 and more.
        second: Features, [m, d].
        seed: Of the resampling.

    Raises:
        ValueError: The sets are too small, or their features are not of one length.
    """
    first, second = _two_sets(first, second)
    parts = -(-max(len(first), len(second)) // _MAX_KERNEL_ROWS)
    rng = np.random.default_rng(seed)
    found = [
        _kernel_part(one, two, rng)
        for one, two in zip(
            np.array_split(first, parts), np.array_split(second, parts), strict=True
        )
    ]
    estimate = float(np.mean([estimate for estimate, _ in found]))
    resampled = np.mean([resampled for _, resampled in found], axis=0)
    # Of very few pictures a resampled set may be one picture, which has no pair.
    whole = resampled[np.isfinite(resampled)]
    low, high = np.quantile(whole if len(whole) else [estimate], (0.025, 0.975))
    return Interval(estimate, float(low), float(high), len(first))


def frechet_distance(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Interval:
    """FID: Frechet distance of the normal distributions with the sets' means and covariances.

    The interval is the estimate plus and minus 1.96 standard deviations over resampled sets:
    percentiles would lie above the estimate, whose bias grows with every repeated picture.

    Raises:
        ValueError: As for ``kernel_distance``.
    """
    first, second = _two_sets(first, second)
    estimate = _frechet(first, second)
    rng = np.random.default_rng(seed)
    spread = np.std(
        [
            _frechet(
                *(features[rng.integers(len(features), size=len(features))] for features in pair)
            )
            for pair in [(first, second)] * _FRECHET_RESAMPLES
        ]
    )
    margin = 1.96 * float(spread)
    return Interval(estimate, max(0.0, estimate - margin), estimate + margin, len(first))


DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], Interval]] = {
    "kid": kernel_distance,
    "fid": frechet_distance,
}
"""Name of a distance of two sets -> the function."""


def _two_sets(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sets in float64 and in an order of their own, so that the given order has no effect."""
    if min(len(first), len(second)) < 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"two sets of at least 2 features of one length are needed, got {first.shape} and "
            f"{second.shape}"
        )
    one, two = (
        features[np.lexsort(features.T[::-1])].astype(np.float64) for features in (first, second)
    )
    return one, two


def _kernel_part(
    first: np.ndarray, second: np.ndarray, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """The distance, and those of resampled sets."""
    width = first.shape[1]
    within_first, within_second, across = (
        (one @ two.T / width + 1.0) ** 3
        for one, two in ((first, first), (second, second), (first, second))
    )
    every = np.ones((1, len(first))), np.ones((1, len(second)))
    drawn = tuple(
        rng.multinomial(
            len(features), np.full(len(features), 1 / len(features)), _KERNEL_RESAMPLES
        ).astype(np.float64)
        for features in (first, second)
    )
    estimates = []
    for ones, twos in (every, drawn):
        distance = _off_diagonal_mean(within_first, ones) + _off_diagonal_mean(within_second, twos)
        pairs = ones.sum(axis=1) * twos.sum(axis=1)
        distance -= 2 * ((ones @ across) * twos).sum(axis=1) / pairs
        estimates.append(distance)
    return float(estimates[0][0]), estimates[1]


def _off_diagonal_mean(kernel: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over pairs of different pictures, each counted ``weights`` [R, n] times."""
    squares = weights**2
    total = ((weights @ kernel) * weights).sum(axis=1) - squares @ np.diag(kernel)
    pairs = weights.sum(axis=1) ** 2 - squares.sum(axis=1)
    return np.divide(total, pairs, out=np.full(len(total), np.nan), where=pairs > 0)


def _frechet(first: np.ndarray, second: np.ndarray) -> float:
    means = first.mean(axis=0) - second.mean(axis=0)
    one, two = (
        (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
        for features in (first, second)
    )
    # The trace of the root of both covariances' product: singular values of the smaller matrix.
    if len(one) <= one.shape[1]:
        root = np.linalg.svd(one @ two.T, compute_uv=False).sum()
    else:
        factors = [np.asarray(np.linalg.qr(part, mode="r")) for part in (one, two)]
        root = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    return float(max(0.0, means @ means + (one**2).sum() + (two**2).sum() - 2 * root))
