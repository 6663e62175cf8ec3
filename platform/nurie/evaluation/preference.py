"""What people prefer: strengths from pairwise choices, and whether the raters agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import NamedTuple

import numpy as np

from nurie.evaluation.statistics import Interval

_RESAMPLES = 1000
_PRIOR = 0.5
_ITERATIONS = 500
_TOLERANCE = 1e-10
_LEAST_RIGHT = 0.75


class Choice(NamedTuple):
    """One answer.

    Attributes:
        rater: Who.
        item: Which pair of pictures.
        winner: System that was preferred.
        loser: The other one.
    """

    rater: str
    item: str
    winner: str
    loser: str


@dataclass(frozen=True)
class Preferences:
    """The outcome of a study.

    Attributes:
        strengths: System -> Bradley-Terry strength (natural logarithm, mean 0) with its interval.
        pairs: (first, second) -> (share that prefers the first, answers, two-sided binomial p).
        agreement: Krippendorff's alpha of the raters; None where no item has two answers.
        raters: Raters that count.
        answers: Answers that count.
        excluded: Rater -> why their answers do not count.
    """

    strengths: dict[str, Interval]
    pairs: dict[tuple[str, str], tuple[float, int, float]]
    agreement: float | None
    raters: int
    answers: int
    excluded: dict[str, str]


def evaluate_choices(
    choices: Sequence[Choice], checks: Mapping[str, Sequence[bool]], seed: int = 0
) -> Preferences:
    """Strengths, shares and agreement, without raters who fail the attention checks.

    Intervals resample raters: answers of one person depend on each other.

    Args:
        choices: All answers but those to checks.
        checks: Rater -> whether each check was answered right.
        seed: Of the resampling.

    Raises:
        ValueError: No answer counts.
    """
    excluded = {
        rater: f"{sum(right)} of {len(right)} attention checks right"
        for rater, right in checks.items()
        if right and sum(right) < _LEAST_RIGHT * len(right)
    }
    kept = [choice for choice in choices if choice.rater not in excluded]
    if not kept:
        raise ValueError(
            f"no answer counts: {len(choices)} answers, {len(excluded)} raters excluded"
        )
    systems = sorted({name for choice in kept for name in (choice.winner, choice.loser)})
    by_rater: dict[str, np.ndarray] = {}
    for choice in kept:
        wins = by_rater.setdefault(choice.rater, np.zeros((len(systems),) * 2))
        wins[systems.index(choice.winner), systems.index(choice.loser)] += 1
    tables = np.array([by_rater[rater] for rater in sorted(by_rater)])
    estimate = bradley_terry(tables.sum(axis=0))
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(tables), np.full(len(tables), 1 / len(tables)), _RESAMPLES)
    resampled = np.array([bradley_terry(np.tensordot(w, tables, 1)) for w in weights])
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    answers = tables.sum(axis=(0, 1)) + tables.sum(axis=(0, 2))
    strengths = {
        name: Interval(float(estimate[i]), float(low[i]), float(high[i]), int(answers[i]))
        for i, name in enumerate(systems)
    }
    return Preferences(
        strengths,
        _pairs(tables.sum(axis=0), systems),
        krippendorff_alpha((choice.item, choice.winner) for choice in kept),
        len(tables),
        len(kept),
        excluded,
    )


def bradley_terry(wins: np.ndarray) -> np.ndarray:
    """Strengths (Bradley and Terry 1952) by Hunter's MM algorithm.

    Half a win is added to every pair that was compared, on both sides, so that a system that always
    wins has a finite strength.

    Args:
        wins: How often i was preferred to j, [n, n].

    Returns:
        Natural logarithms, mean 0, [n]: i is preferred to j with odds ``exp(s_i - s_j)``.
    """
    games = wins + wins.T
    games = games + 2 * _PRIOR * (games > 0)
    won = wins.sum(axis=1) + _PRIOR * (games > 0).sum(axis=1)
    strengths = np.ones(len(wins))
    for _ in range(_ITERATIONS):
        expected = (games / (strengths[:, None] + strengths[None])).sum(axis=1)
        updated = np.divide(won, expected, out=np.ones(len(wins)), where=expected > 0)
        updated /= np.exp(np.log(updated).mean())
        done = np.abs(updated - strengths).max() < _TOLERANCE
        strengths = updated
        if done:
            break
    return np.log(strengths)


def krippendorff_alpha(ratings: Iterable[tuple[str, str]]) -> float | None:
    """Krippendorff's alpha for nominal ratings: 1 full agreement, 0 chance.

    Args:
        ratings: (item, answer); items need not have the same number of answers.

    Returns:
        None where no item has two answers; 1 where all answers are the same.
    """
    items: dict[str, dict[str, int]] = {}
    for item, answer in ratings:
        counts = items.setdefault(item, {})
        counts[answer] = counts.get(answer, 0) + 1
    whole = [counts for counts in items.values() if sum(counts.values()) > 1]
    if not whole:
        return None
    totals: dict[str, int] = {}
    observed = 0.0
    for counts in whole:
        number = sum(counts.values())
        same = sum(count * (count - 1) for count in counts.values())
        observed += (number * (number - 1) - same) / (number - 1)
        for answer, count in counts.items():
            totals[answer] = totals.get(answer, 0) + count
    number = sum(totals.values())
    expected = number**2 - sum(count**2 for count in totals.values())
    return 1.0 if expected == 0 else 1.0 - (number - 1) * observed / expected


def binomial_p(wins: int, answers: int) -> float:
    """Two-sided probability of so uneven a split if both were as good."""
    tail = sum(comb(answers, k) for k in range(max(wins, answers - wins), answers + 1))
    return min(1.0, 2 * tail / 2**answers)


def _pairs(
    wins: np.ndarray, systems: Sequence[str]
) -> dict[tuple[str, str], tuple[float, int, float]]:
    found = {}
    for i, first in enumerate(systems):
        for j, second in enumerate(systems[i + 1 :], start=i + 1):
            answers = int(wins[i, j] + wins[j, i])
            if answers:
                share = float(wins[i, j]) / answers
                found[first, second] = share, answers, binomial_p(int(wins[i, j]), answers)
    return found
