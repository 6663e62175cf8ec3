"""The job store: nothing accepted is lost, nothing is done twice, nothing is kept for ever."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy

from nurie.config.serve import JobsConfig
from nurie_serve.jobs.clean import clean
from nurie_serve.jobs.pictures import StorageFull
from nurie_serve.jobs.store import JobStore, KeyConflict, NewJob, QueueFull
from nurie_serve.jobs.tables import StoreError, Table
from nurie_serve.jobs.work import NewImage, WorkQueue

POSTGRES = os.environ.get("NURIE_TEST_POSTGRES")
"""SQLAlchemy address of an empty database that these tests may fill and wipe."""
ME = "me"
PNG = b"\x89PNG a picture"


@pytest.fixture(params=["sqlite", "postgres"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobsConfig]:
    if request.param == "sqlite":
        yield JobsConfig(folder=str(tmp_path / "jobs"), max_bytes=2**20)
        return
    if not POSTGRES:
        pytest.skip("NURIE_TEST_POSTGRES names no database")
    yield JobsConfig(folder=str(tmp_path / "jobs"), max_bytes=2**20, database=POSTGRES)
    engine = sqlalchemy.create_engine(POSTGRES)
    Table.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def store(config: JobsConfig) -> Iterator[JobStore]:
    store = JobStore(config, max_queued=200)
    yield store
    store.close()


@pytest.fixture
def queue(store: JobStore) -> WorkQueue:
    return WorkQueue(store)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the time that the store sees."""
    real, moved = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + moved[0])
    return lambda seconds: moved.__setitem__(0, moved[0] + seconds)


def new_job(store: JobStore, key: str = "a", owner: str = ME, **others) -> NewJob:
    picture = store.pictures.add(owner, PNG, (64, 64))
    params = {"seed": 7, "num_inference_steps": 3}
    return NewJob(owner, params, {"sketch": picture.id}, key, "0" * 64, **others)


def submit(store: JobStore, key: str = "a", **others) -> str:
    return store.submit(new_job(store, key, **others)).job.id


def finish(queue: WorkQueue, lease: str, work, data: bytes = PNG) -> bool:
    return queue.finish(lease, work, [NewImage(data, 7, 64, 64)], "model", {"denoise_s": 1.0})


def stored_files(store: JobStore) -> list[Path]:
    return [path for path in Path(store.config.folder).glob("*/**/*") if path.is_file()]


def counts(store: JobStore) -> dict[str, int]:
    return store.load()[0]


def kinds(store: JobStore, job_id: str) -> list[str]:
    return [event.kind for event in store.events(job_id, 0)]


def test_a_job_from_beginning_to_end(store: JobStore, queue: WorkQueue) -> None:
    job_id = submit(store)
    waiting = store.get(ME, job_id)
    assert waiting is not None
    assert (waiting.job.status, waiting.position) == ("queued", 1)
    (work,) = queue.take("lease-1", 4)
    assert (work.job_id, work.attempt, work.params["seed"]) == (job_id, 1, 7)
    assert queue.read_input(work.inputs["sketch"]) == PNG
    queue.progress("lease-1", 1, 3, 0.5)
    assert finish(queue, "lease-1", work)
    done = store.get(ME, job_id)
    assert done is not None
    assert (done.job.status, done.job.model, done.job.lease) == ("succeeded", "model", None)
    assert store.files.read(done.images[0].path) == PNG
    assert kinds(store, job_id) == ["queued", "started", "progress", "done"]
    assert [event.number for event in store.events(job_id, 2)] == [3, 4]
    assert queue.take("lease-2", 4) == []


def test_order_kinds_and_priority(store: JobStore, queue: WorkQueue) -> None:
    low = submit(store, "b", priority=-1)
    first, other, second = (submit(store, key) for key in "aba")
    places = {job_id: store.get(ME, job_id).position for job_id in (first, other, second, low)}
    assert places == {first: 1, other: 2, second: 3, low: 4}
    assert [work.job_id for work in queue.take("l1", 4)] == [first, second]
    assert [work.job_id for work in queue.take("l2", 1)] == [other]
    assert [work.job_id for work in queue.take("l3", 4)] == [low]


def test_the_queue_has_an_end(store: JobStore) -> None:
    store.max_queued = 2
    submit(store)
    with pytest.raises(QueueFull):
        store.submit_all([new_job(store), new_job(store)])
    assert counts(store) == {"queued": 1}, "all or none"
    submit(store)
    with pytest.raises(QueueFull):
        submit(store)


def test_many_takers_take_each_job_once(store: JobStore, queue: WorkQueue) -> None:
    job_ids = [submit(store, key=str(n % 3)) for n in range(60)]

    def worker(name: int) -> list[str]:
        done, number = [], 0
        while batch := queue.take(f"{name}-{number}", 4):
            done += [work.job_id for work in batch if finish(queue, f"{name}-{number}", work)]
            number += 1
        return done

    with ThreadPoolExecutor(8) as pool:
        done = [job_id for jobs in pool.map(worker, range(8)) for job_id in jobs]
    assert sorted(done) == sorted(job_ids)
    assert counts(store) == {"succeeded": 60}


def test_fifty_equal_keys_at_once_are_one_job(store: JobStore) -> None:
    def send(_: int) -> str:
        return submit(store, idempotency_key="key")

    with ThreadPoolExecutor(50) as pool:
        assert len(set(pool.map(send, range(50)))) == 1
    assert counts(store) == {"queued": 1}


def test_key_stands_for_one_request_of_one_owner(store: JobStore) -> None:
    job_id = submit(store, idempotency_key="key")
    assert store.find_repeated(ME, "key", "0" * 64).job.id == job_id
    with pytest.raises(KeyConflict):
        store.find_repeated(ME, "key", "1" * 64)
    assert submit(store, owner="you", idempotency_key="key") != job_id


def test_lease_of_the_dead_goes_to_another_who_alone_can_end_the_job(
    store: JobStore, queue: WorkQueue, clock: Callable[[float], None]
) -> None:
    job_id = submit(store)
    (slow,) = queue.take("slow", 4)
    clock(store.config.lease_s - 1)
    queue.extend("slow")
    clock(store.config.lease_s - 1)
    assert queue.release_silent() == 0
    assert queue.held("slow") == {job_id}
    clock(2)
    assert queue.release_silent() == 1
    assert queue.held("slow") == set()
    (fast,) = queue.take("fast", 4)
    assert fast.attempt == 2
    assert not finish(queue, "slow", slow, b"slow")
    assert not queue.fail("slow", job_id, {"code": "late"})
    queue.progress("slow", 2, 3, 1.0)
    assert finish(queue, "fast", fast, b"fast")
    assert not finish(queue, "slow", slow, b"slow")
    done = store.get(ME, job_id)
    assert store.files.read(done.images[0].path) == b"fast"
    assert kinds(store, job_id) == ["queued", "started", "queued", "started", "done"]
    assert len(stored_files(store)) == 2, "the sketch and one result"


def test_poison_fails_after_three_tries_and_spares_its_neighbours(
    store: JobStore, queue: WorkQueue
) -> None:
    poison, neighbour = submit(store), submit(store)
    assert len(queue.take("l0", 4)) == 2
    queue.release("l0", counts=True)
    for attempt in (2, 3):
        (work,) = queue.take(f"l{attempt}", 4)
        assert (work.job_id, work.attempt) == (poison, attempt), "alone, and before the others"
        queue.release(f"l{attempt}", counts=True)
    (work,) = queue.take("l4", 4)
    assert work.job_id == neighbour
    assert finish(queue, "l4", work)
    failed = store.get(ME, poison).job
    assert (failed.status, failed.error["code"], failed.attempts) == ("failed", "worker_lost", 3)
    assert kinds(store, poison)[-1] == "failed"


def test_jobs_handed_on_do_not_count_as_tries(store: JobStore, queue: WorkQueue) -> None:
    submit(store)
    for number in range(5):
        queue.take(f"l{number}", 1)
        assert queue.release(f"l{number}", counts=False) == 1
    assert queue.take("last", 1)[0].attempt == 1


def test_nobody_waits_for_a_late_job(
    store: JobStore, queue: WorkQueue, clock: Callable[[float], None]
) -> None:
    late, other = submit(store, deadline=time.time() + 10), submit(store)
    clock(11)
    assert [work.job_id for work in queue.take("l", 4)] == [other]
    assert store.get(ME, late).job.error["code"] == "deadline_exceeded"


def test_cancelled_jobs_are_not_finished(store: JobStore, queue: WorkQueue) -> None:
    running, queued = submit(store, "a"), submit(store, "b")
    (work,) = queue.take("l", 1)
    for job_id in (running, queued, running):
        assert store.cancel(ME, job_id).job.status == "cancelled"
    assert queue.held("l") == set()
    assert not finish(queue, "l", work)
    assert queue.take("l2", 4) == []
    assert kinds(store, queued) == ["queued", "cancelled"]


def test_cancel_storm(store: JobStore, queue: WorkQueue) -> None:
    job_ids = [submit(store) for _ in range(60)]

    def work(number: int) -> int:
        batch = queue.take(str(number), 2)
        return sum(finish(queue, str(number), each) for each in batch)

    with ThreadPoolExecutor(6) as pool:
        finished = pool.map(work, range(30))
        cancelled = list(pool.map(lambda job_id: store.cancel(ME, job_id), job_ids[::2]))
    assert all(snapshot.job.status in ("cancelled", "succeeded") for snapshot in cancelled)
    sum_finished = sum(finished)
    while batch := queue.take("rest", 4):
        sum_finished += sum(finish(queue, "rest", each) for each in batch)
    by_status = counts(store)
    assert by_status["succeeded"] == sum_finished
    assert sum(by_status.values()) == 60
    for job_id in job_ids:
        ends = [kind for kind in kinds(store, job_id) if kind in ("done", "cancelled")]
        assert len(ends) == 1


def test_others_see_nothing(store: JobStore) -> None:
    job_id = submit(store)
    picture = store.pictures.add(ME, PNG, (64, 64), expires_at=time.time() + 60)
    assert store.get("you", job_id) is None
    assert store.cancel("you", job_id) is None
    assert not store.delete("you", job_id)
    assert store.pictures.find("you", picture.id) is None
    assert store.list_jobs("you", None, 10, None) == []
    assert store.cancel_all("you") == 0
    assert store.get(ME, job_id).job.status == "queued"


def test_pages_of_jobs(store: JobStore) -> None:
    job_ids = [submit(store) for _ in range(5)][::-1]
    store.cancel(ME, job_ids[1])
    first = [each.job.id for each in store.list_jobs(ME, None, 2, None)]
    rest = [each.job.id for each in store.list_jobs(ME, None, 9, first[-1])]
    assert first + rest == job_ids
    assert [each.job.id for each in store.list_jobs(ME, "cancelled", 9, None)] == [job_ids[1]]


def test_deleted_jobs_leave_no_files(store: JobStore, queue: WorkQueue) -> None:
    upload = store.pictures.add(ME, PNG, (64, 64), expires_at=time.time() + 60)
    plain = new_job(store)
    job_id = store.submit(NewJob(ME, plain.params, {**plain.inputs, "mask": upload.id}, "a", "0"))
    (work,) = queue.take("l", 1)
    finish(queue, "l", work)
    assert store.delete(ME, job_id.job.id)
    assert store.events(job_id.job.id, 0) == []
    assert [path.stem for path in stored_files(store)] == [upload.id]


def test_what_is_kept(
    store: JobStore, queue: WorkQueue, clock: Callable[[float], None], config: JobsConfig
) -> None:
    small = JobsConfig(**{**config.model_dump(), "max_kept": 3, "keep_s": 100})
    store.config = small
    job_ids = [submit(store) for _ in range(5)]
    for number in range(4):
        finish(queue, str(number), queue.take(str(number), 1)[0])
    clean(store)
    assert [each.job.id for each in store.list_jobs(ME, None, 9, None)] == job_ids[:0:-1]
    store.pictures.add(ME, PNG, (64, 64), expires_at=time.time() + 50)
    store.pictures.add(ME, PNG, (64, 64))
    clock(1000)
    clean(store)
    assert [each.job.id for each in store.list_jobs(ME, None, 9, None)] == [job_ids[4]]
    assert len(stored_files(store)) == 1, "the sketch of the job that still waits"


def test_bytes_are_limited(store: JobStore, queue: WorkQueue) -> None:
    big = b"x" * 300_000
    for number in range(4):
        submit(store)
        finish(queue, str(number), queue.take(str(number), 1)[0], big)
    store.pictures.add(ME, PNG, (64, 64))
    clean(store)
    assert len(store.list_jobs(ME, "succeeded", 9, None)) == 3
    with pytest.raises(StorageFull):
        store.pictures.add(ME, b"x" * 2**20, (64, 64))


def test_deleting_makes_room_at_once(store: JobStore) -> None:
    half = b"x" * (2**19 + 1)
    upload = store.pictures.add(ME, half, (64, 64), expires_at=time.time() + 60)
    for _ in range(2):
        with pytest.raises(StorageFull):
            store.pictures.add(ME, half, (64, 64))
    store.pictures.forget(ME, upload.id)
    store.pictures.add(ME, half, (64, 64))


@pytest.mark.parametrize("config", ["sqlite"], indirect=True)
def test_finished_jobs_do_not_slow_new_ones_down(
    store: JobStore, queue: WorkQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nurie_serve.jobs.pictures.SUM_EVERY_S", 3600.0)

    def steps() -> int:
        """Instructions of SQLite's machine for one job's way through the store."""
        count = itertools.count()
        with store._engine.connect() as connection:
            raw = connection.connection.driver_connection
            assert isinstance(raw, sqlite3.Connection)
        raw.set_progress_handler(lambda: next(count) and 0, 1)
        job_id = submit(store)
        store.num_queued()
        finish(queue, "lease", queue.take("lease", 1)[0])
        assert store.get(ME, job_id) is not None
        raw.set_progress_handler(None, 1)
        return next(count)

    for _ in range(30):
        steps()
    few = steps()
    for _ in range(300):
        steps()
    assert few > 1000
    assert steps() < 1.1 * few


def test_full_disk_leaves_no_half_file(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            store.pictures.add(ME, PNG, (64, 64))
    assert stored_files(store) == []
    submit(store)


def test_reopened_store_has_everything(store: JobStore, queue: WorkQueue) -> None:
    done, waiting = submit(store, "a"), submit(store, "b")
    finish(queue, "l", queue.take("l", 1)[0])
    store.close()
    again = JobStore(store.config, 10)
    assert again.files.read(again.get(ME, done).images[0].path) == PNG
    assert [work.job_id for work in WorkQueue(again).take("l2", 4)] == [waiting]


def test_killed_process_loses_no_accepted_job(tmp_path: Path) -> None:
    program = """
import sys
from nurie.config.serve import JobsConfig
from tests.serve.test_store import JobStore, submit
store = JobStore(JobsConfig(folder=sys.argv[1]), 10**6)
while True:
    print(submit(store), flush=True)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        accepted = [process.stdout.readline().strip() for _ in range(30)]
        os.kill(process.pid, signal.SIGKILL)
        # The last line may be cut off.
        accepted += [line.strip() for line in process.stdout if line.endswith("\n")]
    store = JobStore(JobsConfig(folder=str(tmp_path)), 10)
    jobs = [store.get(ME, job_id) for job_id in accepted]
    assert len(jobs) >= 30
    assert all(snapshot is not None for snapshot in jobs)


@pytest.mark.parametrize("content", [b"", b"not a database" * 1000], ids=["empty", "damaged"])
def test_damaged_store_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "jobs.db").write_bytes(content)
    with pytest.raises(StoreError, match=r"jobs\.db"):
        JobStore(JobsConfig(folder=str(tmp_path)), 10)
    assert (tmp_path / "jobs.db").read_bytes() == content


def test_store_of_another_version_is_refused(tmp_path: Path) -> None:
    config = JobsConfig(folder=str(tmp_path))
    JobStore(config, 10).close()
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        connection.execute("UPDATE meta SET schema_version = 99")
    with pytest.raises(StoreError, match="version 99"):
        JobStore(config, 10)


def test_pictures_elsewhere_need_a_database() -> None:
    with pytest.raises(ValueError, match=r"give jobs\.database too"):
        JobsConfig(folder="s3://bucket/jobs")
    config = JobsConfig(folder="memory://jobs", database="sqlite:///relative.db")
    assert config.url == f"sqlite:///{Path('relative.db').absolute()}"
