"""The three protocols: whose sketch meets whose reference."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pyarrow as pa

from nurie.data.shards import ShardReader
from nurie.evaluation.pairs import PROTOCOLS, choose_pairs


class Rows(SimpleNamespace):
    """The index of a split, which is all that choosing needs."""

    def __len__(self) -> int:
        return self.index.num_rows


def reader(same_palette: bool = True, count: int = 10) -> ShardReader:
    rows = [
        {
            "sample_id": f"s{i}",
            "mismatched_ids": [f"s{(i + 5) % count}", f"s{(i + 6) % count}"],
            "same_palette_ids": [f"s{(i + 1) % count}"] if same_palette and i else [],
        }
        for i in range(count)
    ]
    types = {"mismatched_ids": pa.list_(pa.string()), "same_palette_ids": pa.list_(pa.string())}
    schema = pa.schema([("sample_id", pa.string()), *types.items()])
    return cast(ShardReader, Rows(index=pa.Table.from_pylist(rows, schema=schema)))


def test_every_sample_meets_its_references() -> None:
    plan = choose_pairs(reader(), 10, seed=0)
    for pair in plan.pairs:
        number = int(pair.sample_id[1:])
        offset = {"own": 0, "same_palette": 1, "wrong": 5}[pair.protocol]
        assert pair.reference_id == f"s{(number + offset) % 10}"
    assert len(plan.pairs) == 29
    assert plan.skipped == {"same_palette": "1 of 10 samples have no such reference"}


def test_only_the_reference_differs_between_protocols() -> None:
    plan = choose_pairs(reader(), 4, seed=1)
    for order in range(4):
        pairs = [pair for pair in plan.pairs if pair.order == order]
        assert len({(pair.sample_id, pair.sketch, pair.seed) for pair in pairs}) == 1
        assert [p.protocol for p in pairs] == [
            p for p in PROTOCOLS if p in {q.protocol for q in pairs}
        ]
    assert len({pair.seed for pair in plan.pairs}) == 4


def test_the_seed_chooses() -> None:
    first = choose_pairs(reader(), 4, seed=1)
    assert first == choose_pairs(reader(), 4, seed=1)
    assert first != choose_pairs(reader(), 4, seed=2)
    assert len({pair.sample_id for pair in choose_pairs(reader(), 99, seed=0).pairs}) == 10


def test_a_missing_protocol_is_said() -> None:
    plan = choose_pairs(reader(same_palette=False), 10, seed=0)
    assert {pair.protocol for pair in plan.pairs} == {"own", "wrong"}
    assert plan.skipped == {"same_palette": "10 of 10 samples have no such reference"}
