"""Mismatched references: never a relative, the same for everybody, of any size of set."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nurie.data.colour_histogram import NUM_COLOURS, colour_histogram, colour_likeness
from nurie.data.mismatch import NUM_CANDIDATES, MismatchSampler

COLUMNS = ("sample_id", "group_id", "palette_id", "tags", "split")
TAGS = ("red_hair", "blue_eyes", "hat", "glasses", "solo")


def table(rows: list[tuple]) -> pa.Table:
    columns = {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}
    return pa.table(columns | {"colours": [colours_of(row[0]) for row in rows]})


def colours_of(sample_id: str) -> list[float]:
    """Half of one colour, half of another, by the id's number."""
    number = int(sample_id[1:])
    colours = np.zeros(NUM_COLOURS)
    colours[[number % NUM_COLOURS, (number // 7) % NUM_COLOURS]] += 0.5
    return colours.tolist()


def choose(rows: list[tuple], seed: int, epoch: int, strategy: str = "tag_distance") -> list[str]:
    """Ids of the references of all rows."""
    sampler = MismatchSampler(table(rows), seed, strategy)  # type: ignore[arg-type]
    return [rows[other][0] for other in sampler.choose(np.arange(len(rows)), epoch)]


@st.composite
def row_sets(draw, sizes=(2, 3, 10)):
    """Sets in which every row has at least one unrelated row."""
    size = draw(st.sampled_from(sizes))
    rows = []
    for number in range(size):
        # Two groups and palettes that no row shares keep every row solvable in the smallest set.
        group = draw(st.integers(0, 2)) if 1 < number < size - 1 else 10 + number
        palette = draw(st.integers(0, 2)) if 1 < number < size - 1 else 10 + number
        tags = draw(st.lists(st.sampled_from(TAGS), unique=True))
        rows.append((f"s{number}", f"g{group}", f"p{palette}", tags, "train"))
    return rows


@given(
    row_sets(),
    st.integers(0, 2**32),
    st.integers(0, 50),
    st.sampled_from(list(NUM_CANDIDATES)),
)
@settings(max_examples=150, deadline=None)
def test_reference_is_never_a_relative(rows, seed, epoch, strategy):
    by_id = {row[0]: row for row in rows}
    for row, chosen in zip(rows, choose(rows, seed, epoch, strategy), strict=True):
        other = by_id[chosen]
        assert other[0] != row[0]
        assert other[1] != row[1]
        assert other[2] != row[2]


@given(row_sets(), st.integers(0, 99), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_choice_does_not_depend_on_the_order_of_rows(rows, seed, rng):
    shuffled = rows.copy()
    rng.shuffle(shuffled)
    chosen = dict(zip([row[0] for row in shuffled], choose(shuffled, seed, 3), strict=True))
    assert choose(rows, seed, 3) == [chosen[row[0]] for row in rows]


@given(row_sets((10,)), st.integers(0, 99), st.sampled_from(list(NUM_CANDIDATES)))
@settings(max_examples=30, deadline=None)
def test_choice_does_not_depend_on_what_is_chosen_with_it(rows, seed, strategy):
    sampler = MismatchSampler(table(rows), seed, strategy)
    together = sampler.choose(np.arange(10), 2).tolist()
    assert [int(sampler.choose(np.array([row]), 2)[0]) for row in range(10)] == together


def test_choice_changes_with_epoch_and_seed():
    rows = [(f"s{i}", f"g{i}", f"p{i}", [], "train") for i in range(50)]
    choices = {(seed, epoch): choose(rows, seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert len({tuple(choice) for choice in choices.values()}) == 4


def test_splits_do_not_mix():
    rows = [(f"s{i}", f"g{i}", f"p{i}", [], "test" if i % 3 else "train") for i in range(12)]
    split = {row[0]: row[4] for row in rows}
    assert [split[other] for other in choose(rows, 0, 0)] == [row[4] for row in rows]


def test_different_tags_are_preferred():
    rows = [
        (f"s{i}", f"g{i}", f"p{i}", ["a", "b"] if i % 2 else ["c", "d"], "train") for i in range(40)
    ]
    tags = {row[0]: row[3] for row in rows}

    def share_of_same(strategy: str) -> float:
        chosen = [
            (row[3], tags[other])
            for epoch in range(10)
            for row, other in zip(rows, choose(rows, 0, epoch, strategy), strict=True)
        ]
        return sum(mine == others for mine, others in chosen) / len(chosen)

    assert share_of_same("tag_distance") < 0.1
    assert share_of_same("uniform") > 0.3


def test_hard_references_have_similar_colours():
    rows = [(f"s{i}", f"g{i}", f"p{i}", [], "train") for i in range(200)]

    def likeness(strategy: str) -> float:
        pairs = [
            (row[0], other)
            for epoch in range(4)
            for row, other in zip(rows, choose(rows, 0, epoch, strategy), strict=True)
        ]
        mine, others = (np.array([colours_of(pair[k]) for pair in pairs]) for k in (0, 1))
        return float(np.minimum(mine, others).sum(axis=1).mean())

    assert likeness("uniform") < 0.15
    assert likeness("hard") > 0.4


def test_histogram_counts_colours_and_not_places():
    rng = np.random.default_rng(0)
    image = np.zeros((20, 20, 3), np.uint8)
    image[:5], image[5:10], image[10:] = (220, 40, 40), (250, 250, 250), (40, 60, 220)
    shuffled = rng.permutation(image.reshape(-1, 3)).reshape(image.shape)
    histogram = colour_histogram(image)
    assert np.array_equal(histogram, colour_histogram(shuffled))
    assert sorted(histogram[histogram > 0].tolist()) == [0.25, 0.25, 0.5]
    blue = colour_histogram(np.full((4, 4, 3), (40, 60, 220), np.uint8))
    green = colour_histogram(np.full((4, 4, 3), (30, 200, 40), np.uint8))
    assert colour_likeness(histogram, np.stack([histogram, blue, green])).tolist() == [1, 0.5, 0]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_impossible_sets_are_refused_by_name(size):
    rows = [(f"s{i}", "same", f"p{i}", [], "train") for i in range(size)]
    with pytest.raises(ValueError, match=r"no mismatched reference for sample 's0'.*split"):
        choose(rows, 0, 0)


def test_duplicate_ids_and_unknown_strategies_are_refused():
    rows = [("s0", "g0", "p0", [], "train"), ("s0", "g1", "p1", [], "train")]
    with pytest.raises(ValueError, match="'s0'"):
        MismatchSampler(table(rows), 0)
    with pytest.raises(ValueError, match="tag_distance"):
        MismatchSampler(table(rows[:1]), 0, "nearest")


def test_large_set_with_one_dominating_group():
    rng = random.Random(0)
    size = 100_000
    rows = [
        (
            f"s{i}",
            "big" if i < 0.99 * size else f"g{i}",
            f"p{i % 5000}",
            rng.sample(TAGS, 2),
            "train",
        )
        for i in range(size)
    ]
    chosen = rng.sample(range(size), 3000)
    others = MismatchSampler(table(rows), 5).choose(np.array(chosen), 1)
    for row, other in zip(chosen, others.tolist(), strict=True):
        assert rows[other][1] != rows[row][1]
        assert rows[other][2] != rows[row][2]


@pytest.mark.parametrize("size", [12, 40, 400])
@pytest.mark.parametrize("strategy", list(NUM_CANDIDATES))
def test_no_picture_is_used_far_more_often_than_others(strategy, size):
    rng = np.random.default_rng(0)
    rows = [
        {
            "sample_id": f"s{i:04d}",
            "group_id": f"g{i // 2}",
            "palette_id": f"p{i}",
            "tags": rng.choice(list("abcdefgh"), 3, replace=False).tolist(),
            "split": "train",
            "colours": rng.dirichlet(np.full(NUM_COLOURS, 0.1)).tolist(),
        }
        for i in range(size)
    ]
    sampler = MismatchSampler(pa.Table.from_pylist(rows), 0, strategy)
    uses = Counter(
        other for epoch in range(8) for other in sampler.choose(np.arange(size), epoch).tolist()
    )
    most = 1.5 if strategy == "uniform" else 2.5 if size == 400 else 3
    assert max(uses.values()) <= 8 * most
    if strategy == "uniform" and size == 400:
        # Every picture is given away once per permutation, but for relatives.
        assert min(uses.values()) >= 6
