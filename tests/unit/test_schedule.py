"""The order of samples over a run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nurie.data.schedule import SampleSchedule


@given(st.integers(1, 40), st.integers(0, 2**31), st.integers(0, 5))
def test_every_epoch_is_a_permutation(num_samples, seed, epoch):
    schedule = SampleSchedule(num_samples, seed)
    places = [schedule[epoch * num_samples + i] for i in range(num_samples)]
    assert {place[0] for place in places} == {epoch}
    assert sorted(index for _, index in places) == list(range(num_samples))


def test_epochs_and_seeds_differ_and_access_is_random():
    schedule = SampleSchedule(100, 1)
    forward = [schedule[i] for i in range(600)]
    assert [SampleSchedule(100, 1)[i] for i in reversed(range(600))] == forward[::-1]
    orders = {tuple(index for _, index in forward[e * 100 : e * 100 + 100]) for e in range(6)}
    assert len(orders) == 6
    assert [SampleSchedule(100, 2)[i] for i in range(100)] != forward[:100]


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="num_samples"):
        SampleSchedule(0, 1)
    with pytest.raises(ValueError, match="-1"):
        SampleSchedule(3, 1)[-1]
