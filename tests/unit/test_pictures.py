"""Planning pictures of one's own: what is tested on, what belongs together."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from nurie.config.data import DataConfig, PicturesSource
from nurie.data.near_duplicates import HASH_BITS
from nurie.data.plan import Plan
from nurie_pipelines.data.collections import Item, as_table
from nurie_pipelines.data.pictures import plan_pictures


def plan(items: list[Item], contents: dict[str, str] | None = None, **settings) -> Plan:
    """Plan items that were opened; those of equal contents have one digest."""
    table, rng = as_table(items), np.random.default_rng(0)
    names = table["name"].to_pylist()
    digests = [hashlib.sha256((contents or {}).get(name, name).encode()) for name in names]
    columns = {
        "sha256": pa.array([digest.hexdigest() for digest in digests], pa.large_string()),
        "hash": pa.array([rng.bytes(HASH_BITS // 8) for _ in names], pa.binary(HASH_BITS // 8)),
        "score": pa.nulls(len(names), pa.float64()),
        "width": pa.array([100] * len(names), pa.int32()),
        "height": pa.array([60] * len(names), pa.int32()),
    }
    for name, values in columns.items():
        table = table.append_column(name, values)
    source = PicturesSource(kind="folder", path="x", **settings)
    return plan_pictures(DataConfig(name="t", source=source, output=Path("t")), source, table)


def folder(count: int) -> list[Item]:
    return [Item(f"{number:03d}.png", f"{number:03d}.png") for number in range(count)]


def splits(planned: Plan) -> dict[str, str]:
    return {row["sample_id"]: row["split"] for row in planned.table().to_pylist()}


def in_test(planned: Plan) -> set[str]:
    return {name for name, split in splits(planned).items() if split == "test"}


@pytest.mark.parametrize("count", range(10, 40, 3))
def test_ten_pictures_or_more_have_something_to_evaluate_on(count: int) -> None:
    assert 2 <= len(in_test(plan(folder(count)))) <= count / 3
    assert in_test(plan(folder(count), test_fraction=0)) == set()


def test_fewer_pictures_are_all_trained_on() -> None:
    assert in_test(plan(folder(9))) == set()


def test_more_files_move_no_file_of_a_larger_set() -> None:
    small, large = splits(plan(folder(200))), splits(plan(folder(400)))
    assert small.items() <= large.items()
    assert 8 < len([split for split in small.values() if split == "test"]) < 35


def test_a_layouts_own_split_goes_before() -> None:
    items = [Item(f"{n:02d}", "x", split="test" if n % 3 == 0 else "train") for n in range(30)]
    assert in_test(plan(items)) == {f"{n:02d}" for n in range(0, 30, 3)}


def test_groups_share_a_split_and_are_never_each_others_reference() -> None:
    items = [Item(f"{n:03d}", "x", group=f"g{n // 3}" if n < 60 else None) for n in range(120)]
    rows = plan(items, {f"{n:03d}": f"c{n // 2}" for n in range(60, 120)}).table().to_pylist()
    groups = {row["sample_id"]: row["group_id"] for row in rows}
    assert len(set(groups.values())) == 20 + 30
    assert len({(row["group_id"], row["split"]) for row in rows}) == 50
    for row in rows:
        assert all(groups[other] != row["group_id"] for other in row["mismatched_ids"])
