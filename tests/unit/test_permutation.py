"""The permutation is one, and looks random enough to sample from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nurie.data.permutation import Permutation


@given(st.integers(1, 700), st.text(max_size=8))
def test_every_value_comes_once(size: int, key: str) -> None:
    permutation = Permutation(size, key)
    assert sorted(permutation[place] for place in range(size)) == list(range(size))


def test_large_sizes_cost_no_memory() -> None:
    permutation = Permutation(10**12, "x")
    values = [permutation[place] for place in range(2000)]
    assert len(set(values)) == 2000
    assert np.mean(values) == pytest.approx(5e11, rel=0.05)


def test_keys_give_unrelated_orders() -> None:
    orders = [[Permutation(1000, key)[place] for place in range(1000)] for key in ("a", "b")]
    correlations = np.corrcoef([*orders, range(1000)])
    assert np.abs(correlations - np.eye(3)).max() < 0.1


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Permutation(0, "")
    with pytest.raises(IndexError, match=r"place 3 is not in 0\.\.2"):
        Permutation(3, "")[3]


@given(st.integers(1, 700), st.text(max_size=8))
def test_many_places_at_once_are_those_places(size: int, key: str) -> None:
    permutation = Permutation(size, key)
    places = np.arange(size)[::-1]
    assert permutation.take(places).tolist() == [permutation[int(place)] for place in places]
    large = Permutation(10**12, key)
    assert large.take(places).tolist() == [large[int(place)] for place in places]
