"""The load test measures what it says: bars, and jobs that are lost or made twice."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from benchmarks.load import __main__ as load_test
from benchmarks.load.application import TAKES_ALL_MEMORY, sleeping_loader
from benchmarks.load.endpoint import count_faults
from benchmarks.load.figures import Figure, table, write
from nurie.config.serve import JobsConfig, ServeConfig
from nurie_serve.jobs.store import JobStore, NewJob
from nurie_serve.jobs.tables import Event
from nurie_serve.jobs.work import NewImage, WorkQueue

RELIABILITY = Path(__file__).parents[2] / "docs/reference/reliability.md"


@pytest.mark.parametrize(
    ("value", "at_least", "at_most", "passed"),
    [
        (1.0, None, None, None),
        (None, 1, None, None),
        (1.0, 1, 1, True),
        (0.9, 1, None, False),
        (1.1, None, 1, False),
    ],
)
def test_bars(value, at_least, at_most, passed) -> None:
    assert Figure("S1", "x", value, "s", at_least, at_most).passed is passed


def test_what_was_not_measured_is_not_shown_as_passed(tmp_path: Path) -> None:
    figures = [Figure("S1", "x", None, "s", at_most=1, note="no"), Figure("S1", "y", 2, "s", 1)]
    write(tmp_path / "a" / "load.json", figures, 3.0)
    document = json.loads((tmp_path / "a" / "load.json").read_text())
    assert [figure["passed"] for figure in document["figures"]] == [None, True]
    assert {"commit", "machine", "versions", "made_at"} < set(document)
    assert list(table(figures).columns[2].cells) == ["not measured", "2"]


@pytest.fixture
def jobs(tmp_path: Path) -> JobsConfig:
    return JobsConfig(folder=str(tmp_path))


def make(store: JobStore, *, end: bool = True) -> str:
    job = store.submit(NewJob("me", {"seed": 1}, {}, "a", "0")).job
    if end:
        queue = WorkQueue(store)
        (work,) = queue.take(job.id, 1)
        queue.finish(job.id, work, [NewImage(b"x", 1, 1, 1)], "model", {})
    return job.id


def test_lost_and_duplicated_jobs_are_counted(jobs: JobsConfig) -> None:
    store = JobStore(jobs, 10)
    done = [make(store), make(store)]
    assert count_faults(jobs, done, 2) == (0, 0)
    assert count_faults(jobs, [*done, "job_gone"], 3) == (1, 0)
    assert count_faults(jobs, done, 1) == (0, 1), "one that nobody asked for"
    with Session(store._engine) as session, session.begin():
        session.add(Event(job_id=done[0], number=99, kind="done", data={}))
    assert count_faults(jobs, done, 2) == (0, 1), "one that has ended twice"
    waiting = make(store, end=False)
    assert count_faults(jobs, [*done, waiting], 3) == (1, 1), "one that never ends"
    store.close()


def test_a_load_that_comes_to_no_end_is_missed() -> None:
    from rich.console import Console

    def breaks() -> list[Figure]:
        raise TimeoutError("jobs wait")

    test = load_test.LoadTest([], 1, Console(quiet=True))
    test._measure("S1", breaks)
    assert [figure.passed for figure in test.figures] == [False]


def test_the_sleeping_model_is_a_model(tmp_path: Path) -> None:
    from nurie_serve.colorizer import Colorizer
    from tests.serve.test_colorizer import submit

    config = ServeConfig(jobs=JobsConfig(folder=str(tmp_path)), batch_wait_timeout_s=0)
    colorizer = Colorizer(config, sleeping_loader(0.0, 0.0, str(tmp_path)))
    store = JobStore(config.jobs, 10)
    try:
        seeds = (5, TAKES_ALL_MEMORY)
        ids = [submit(store, seed) for seed in seeds]
        asyncio.run(colorizer.work("lease"))
        found = [store.get("me", job_id) for job_id in ids]
    finally:
        colorizer.close()
        store.close()
    assert [each.job.status for each in found if each] == ["succeeded", "failed"]
    assert found[1] is not None
    assert (found[1].job.error or {})["code"] == "out_of_memory"


def test_every_load_and_fault_is_in_the_table_of_the_documentation() -> None:
    rows = set(re.findall(r"^\| ([SF]\d+) \|", RELIABILITY.read_text(), re.M))
    assert rows == {f"S{n}" for n in range(1, 9)} | {f"F{n}" for n in range(1, 13)}
    assert rows <= set(load_test.EVERYTHING)
