"""The order of samples over a run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nurie.data.schedule import BatchSchedule, SampleSchedule


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


BUCKETS = [range(70), range(70, 100), range(100, 103)]
BATCH = 4


def batches(schedule: BatchSchedule, count: int) -> list[list[tuple[int, int]]]:
    return [[schedule[BATCH * batch + i] for i in range(BATCH)] for batch in range(count)]


def bucket_of(row: int) -> int:
    return next(number for number, rows in enumerate(BUCKETS) if row in rows)


def test_a_batch_has_one_bucket_and_buckets_their_share():
    schedule = BatchSchedule(BUCKETS, BATCH, seed=3)
    cycle = batches(schedule, 1000)
    kinds = [{bucket_of(row) for _, row in batch} for batch in cycle]
    assert all(len(kind) == 1 for kind in kinds)
    counts = [kinds.count({number}) for number in range(3)]
    expected = [1000 * len(rows) / 103 for rows in BUCKETS]
    assert counts == pytest.approx(expected, abs=1)
    # Shares hold early, too: a short run sees all buckets.
    assert kinds[:100].count({0}) == pytest.approx(68, abs=15)


def test_within_a_bucket_every_epoch_is_a_permutation():
    schedule = BatchSchedule(BUCKETS, BATCH, seed=3)
    drawn = [place for batch in batches(schedule, 200) for place in batch]
    for rows in BUCKETS:
        own = [(epoch, row) for epoch, row in drawn if row in rows]
        whole = len(own) // len(rows)
        assert whole >= 1
        for epoch in range(whole):
            part = own[epoch * len(rows) : (epoch + 1) * len(rows)]
            assert {number for number, _ in part} == {epoch}
            assert sorted(row for _, row in part) == list(rows)


def test_any_batch_can_be_asked_for_on_its_own():
    forward = batches(BatchSchedule(BUCKETS, BATCH, seed=3), 2100)
    schedule = BatchSchedule(BUCKETS, BATCH, seed=3)
    for batch in (2099, 0, 1003, 999, 1000):
        assert [schedule[BATCH * batch + i] for i in range(BATCH)] == forward[batch]


def test_one_bucket_is_the_plain_schedule():
    schedule, plain = BatchSchedule([range(10)], BATCH, seed=5), SampleSchedule(10, 5)
    assert [schedule[i] for i in range(40)] == [plain[i] for i in range(40)]


def test_no_bucket_is_refused():
    with pytest.raises(ValueError, match="buckets"):
        BatchSchedule([], BATCH, seed=0)
    with pytest.raises(ValueError, match="num_samples"):
        BatchSchedule([range(3), range(3, 3)], BATCH, seed=0)
