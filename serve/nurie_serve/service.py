"""What the routes share: accepting a job, waiting for it, reading its picture."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from nurie.config.serve import ServeConfig
from nurie_serve import errors
from nurie_serve.dispatch import Dispatcher
from nurie_serve.documents import JobDocument
from nurie_serve.form import Asked, Decoded, batch_key, check_other_side, choose_seed, decode
from nurie_serve.formats import Finished
from nurie_serve.jobs.replicas import ReplicaBoard
from nurie_serve.jobs.store import JobStore, NewJob, QueueFull, Snapshot
from nurie_serve.jobs.tables import FINAL, QUEUED
from nurie_serve.schema import limited_controls
from nurie_serve.view import job_document
from nurie_serve.watch import Watcher

DECODING_AT_ONCE = 4


class Service:
    """The application behind the routes.

    Args:
        config: The application's settings.
        colorizer: Handle of the colorizer deployment.
    """

    def __init__(self, config: ServeConfig, colorizer: DeploymentHandle) -> None:
        self.config = config
        self.controls = limited_controls(config.limits)
        self.store = JobStore(config.jobs, config.max_queued_requests)
        self.watcher = Watcher(self.store)
        self.dispatcher = Dispatcher(
            colorizer,
            self.store,
            self.watcher,
            ReplicaBoard(self.store, config.address),
            scales_to_zero=config.autoscaling.min_replicas == 0,
        )
        self._decoding = asyncio.Semaphore(DECODING_AT_ONCE)

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """The lifespan of the HTTP application."""
        tasks = [asyncio.create_task(each.run()) for each in (self.dispatcher, self.watcher)]
        yield
        for task in tasks:
            task.cancel()
        self.store.close()

    async def submit(
        self, owner: str, asked: Asked, *, key: str | None = None, deadline: float | None = None
    ) -> Snapshot:
        """Accept a job.

        Args:
            owner: Whose.
            asked: The request.
            key: Idempotency key.
            deadline: Unix time after which nobody waits.

        Raises:
            ImageError: For a picture that cannot be used.
            QueueFull: If no place is free.
            KeyConflict: If the key stands for another request.
        """
        fingerprint = asked.fingerprint
        if key is not None:
            repeated = await asyncio.to_thread(self.store.find_repeated, owner, key, fingerprint)
            if repeated is not None:
                return repeated
        await self.check_places(1)
        decoded = await self.decode(asked.files)
        params = choose_seed(asked.values)
        return await asyncio.to_thread(
            self._accept, owner, asked, decoded, params, fingerprint, key, deadline
        )

    async def submit_series(
        self, owner: str, asked: Asked, count: int, deadline: float
    ) -> list[Snapshot]:
        """Accept several jobs that differ in the seed: each has the next.

        Raises:
            ImageError: For a picture that cannot be used.
            QueueFull: If too few places are free.
        """
        await self.check_places(count)
        decoded = await self.decode(asked.files)
        first = choose_seed(asked.values)

        def accept() -> list[Snapshot]:
            inputs, sizes = self._keep(owner, asked, decoded, first)
            key = batch_key(sizes, first)
            series = [
                NewJob(
                    owner=owner,
                    params={**first, "seed": (first["seed"] + number) % 2**32},
                    inputs=inputs,
                    batch_key=key,
                    fingerprint=asked.fingerprint,
                    deadline=deadline,
                    preview_every=asked.preview_every,
                )
                for number in range(count)
            ]
            return self.store.submit_all(series)

        return await asyncio.to_thread(accept)

    async def check_places(self, count: int) -> None:
        """Refuse before the expensive part.

        Raises:
            QueueFull: If so many jobs have no place in the queue.
        """
        counts = await asyncio.to_thread(self.store.counts)
        if counts.get(QUEUED, 0) + count > self.config.max_queued_requests:
            raise QueueFull

    async def decode(self, files: dict[str, bytes]) -> dict[str, Decoded]:
        """Decode untrusted pictures.

        Raises:
            ImageError: For a picture that cannot be used.
        """
        async with self._decoding:
            return await asyncio.to_thread(decode, files, self.config.limits)

    async def find(self, owner: str, job_id: str) -> Snapshot:
        """An owner's job.

        Raises:
            Problem: 404 if there is none.
        """
        snapshot = await asyncio.to_thread(self.store.get, owner, job_id)
        if snapshot is None:
            raise errors.not_found(f"job {job_id}")
        return snapshot

    async def wait(self, owner: str, job_id: str) -> Snapshot:
        """Wait until a job has ended.

        Raises:
            Problem: 404 if it was deleted meanwhile.
        """
        with self.watcher.listen(job_id) as changed:
            while True:
                changed.clear()
                snapshot = await self.find(owner, job_id)
                if snapshot.job.status in FINAL:
                    return snapshot
                await changed.wait()

    def cancel_soon(self, owner: str, job_id: str) -> None:
        """Cancel a job that nobody waits for, without waiting for that."""
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, self.store.cancel, owner, job_id)

    def document(self, snapshot: Snapshot) -> JobDocument:
        """Describe a job."""
        return job_document(snapshot, self.config.jobs.keep_s)

    def finished(self, snapshot: Snapshot, number: int) -> Finished:
        """A finished picture; reads files, so not for the event loop.

        Raises:
            Problem: 404 if the job has no such picture.
        """
        image = next((image for image in snapshot.images if image.number == number), None)
        if image is None:
            raise errors.not_found(f"picture {number} of job {snapshot.job.id}")
        try:
            png = self.store.files.read(image.path)
        except FileNotFoundError:
            raise errors.not_found(f"picture {number} of job {snapshot.job.id}") from None
        job_id = snapshot.job.id
        return Finished(
            png, snapshot.job.params, lambda name: self.store.pictures.read_input(job_id, name)
        )

    def _accept(
        self,
        owner: str,
        asked: Asked,
        decoded: dict[str, Decoded],
        params: dict,
        fingerprint: str,
        key: str | None,
        deadline: float | None,
    ) -> Snapshot:
        inputs, sizes = self._keep(owner, asked, decoded, params)
        return self.store.submit(
            NewJob(
                owner=owner,
                params=params,
                inputs=inputs,
                batch_key=batch_key(sizes, params),
                fingerprint=fingerprint,
                idempotency_key=key,
                deadline=deadline,
                preview_every=asked.preview_every,
            )
        )

    def _keep(
        self, owner: str, asked: Asked, decoded: dict[str, Decoded], params: dict
    ) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
        """Keep a request's pictures; their ids and sizes by input name."""
        sizes = {name: each.size for name, each in decoded.items()}
        inputs = {}
        for name, upload_id in asked.uploads.items():
            inputs[name], sizes[name] = self.find_upload(owner, name, upload_id)
        check_other_side(sizes["sketch"], params, self.config.limits.max_side)
        for name, each in decoded.items():
            inputs[name] = self.store.pictures.add(owner, each.png, each.size).id
        return inputs, sizes

    def find_upload(self, owner: str, name: str, upload_id: str) -> tuple[str, tuple[int, int]]:
        """An upload's id and size.

        Raises:
            Problem: 404 if there is none or its time is over.
        """
        picture = self.store.pictures.find(owner, upload_id)
        if picture is None or (picture.expires_at or 0) < time.time():
            raise errors.not_found(f"upload {upload_id} (for {name})")
        return picture.id, (picture.width, picture.height)
