"""Results on disk: nothing that was made is lost, nothing of another model is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from nurie.evaluation.tasks import Task
from nurie_pipelines.evaluate.actor import SCORED_SCHEMA
from nurie_pipelines.evaluate.store import ResultStore


def scored(*orders: int) -> pa.Table:
    tasks = [Task("model", "own", f"s{order}", ("r",), order) for order in orders]
    rows = [
        {
            "key": task.key,
            "task": task.to_json(),
            "pictures": [b"png" + bytes([task.order])],
            "style": "ink",
            "metrics": json.dumps({"psnr": task.order}),
            "features": None,
            "truth_features": [1.0, 2.0],
        }
        for task in tasks
    ]
    return pa.Table.from_pylist(rows, SCORED_SCHEMA)


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    store = ResultStore(tmp_path)
    store.claim({"model_digest": "a"})
    return store


def test_what_was_made_before_an_error_stays(store: ResultStore, tmp_path: Path) -> None:
    def broken() -> Iterator[pa.Table]:
        yield scored(0, 1)
        yield scored(2)
        raise ConnectionError("a node is gone")

    counts = store.add(broken())
    assert [next(counts), next(counts)] == [2, 1]
    with pytest.raises(ConnectionError):
        next(counts)
    again = ResultStore(tmp_path)
    again.claim({"model_digest": "a"})
    assert again.keys() == {f"model/own/{n}/s{n}" for n in range(3)}
    assert list(again.add([scored(3)])) == [1]
    assert sorted(row["metrics"]["psnr"] for row in again.rows()) == [0, 1, 2, 3]
    assert not list((tmp_path / "results").glob("*.tmp"))


def test_rows_come_without_pictures_and_pictures_by_key(store: ResultStore) -> None:
    list(store.add([scored(0, 1)]))
    row = next(store.rows())
    assert "pictures" not in row
    assert row["task"].reference_ids == ("r",)
    assert row["features"] is None
    assert store.pictures(["model/own/1/s1", "gone"]) == {"model/own/1/s1": [b"png\x01"]}
    assert store.pictures([]) == {}


def test_results_of_another_model_go(store: ResultStore, tmp_path: Path) -> None:
    list(store.add([scored(0)]))
    other = ResultStore(tmp_path)
    other.claim({"model_digest": "b"})
    assert other.keys() == set()
