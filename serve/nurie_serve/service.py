"""What the routes share: accepting a job, waiting for it, reading its picture."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from nurie.config.serve import LimitsConfig, ServeConfig
from nurie.inference.formats import Format, convert
from nurie_serve import errors
from nurie_serve.asked import Asked
from nurie_serve.caller import Caller
from nurie_serve.decoding import DecoderPool
from nurie_serve.dispatch import Dispatcher
from nurie_serve.documents import JobDocument
from nurie_serve.form import Decoded, batch_key, check_other_side, choose_seed, decode
from nurie_serve.jobs.pixels import unpack
from nurie_serve.jobs.replicas import ReplicaBoard
from nurie_serve.jobs.store import JobStore, NewJob, QueueFull, Snapshot
from nurie_serve.jobs.tables import FINAL, Image
from nurie_serve.preprocess import KINDS
from nurie_serve.schema import limited_controls
from nurie_serve.view import job_document
from nurie_serve.watch import Watcher
from nurie_serve.webhooks import Webhooks, check_address


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
        self.webhooks = Webhooks(config, self.store)
        self.decoders = DecoderPool(config.num_decoders, config.limits.max_pixels)
        self._decoding = asyncio.Semaphore(config.num_decoders)

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """The lifespan of the HTTP application."""
        running = (self.dispatcher, self.watcher, self.webhooks)
        tasks = [asyncio.create_task(each.run()) for each in running]
        yield
        for task in tasks:
            task.cancel()
        self.webhooks.close()
        self.decoders.close()
        self.store.close()

    async def submit(
        self, caller: Caller, asked: Asked, *, key: str | None = None, deadline: float | None = None
    ) -> Snapshot:
        """Accept a job.

        Args:
            caller: Whose.
            asked: The request.
            key: Idempotency key.
            deadline: Unix time after which nobody waits.

        Raises:
            Problem: 422 for a webhook that is not allowed.
            ImageError: For a picture that cannot be used.
            QueueFull: If no place is free.
            KeyConflict: If the key stands for another request.
        """
        if asked.webhook is not None:
            check_address(asked.webhook, self.config.webhooks.hosts)
        fingerprint = asked.fingerprint
        if key is not None:
            repeated = await asyncio.to_thread(
                self.store.find_repeated, caller.name, key, fingerprint
            )
            if repeated is not None:
                return repeated
        await self.check_places(1)
        decoded = await self.decode(asked.files, caller.limits)
        params = choose_seed(asked.values)

        def accept() -> list[Snapshot]:
            return [self._accept(caller, asked, decoded, params, fingerprint, key, deadline)]

        if deadline is None:
            return (await asyncio.to_thread(accept))[0]
        return (await self._accept_for_a_visitor(caller.name, accept))[0]

    async def submit_series(
        self, caller: Caller, asked: Asked, count: int, deadline: float
    ) -> list[Snapshot]:
        """Accept several jobs that differ in the seed: each has the next.

        Raises:
            ImageError: For a picture that cannot be used.
            QueueFull: If too few places are free.
        """
        await self.check_places(count)
        decoded = await self.decode(asked.files, caller.limits)
        first = choose_seed(asked.values)

        def accept() -> list[Snapshot]:
            inputs, sizes = self._keep(caller, asked, decoded, first)
            key = batch_key(sizes, first)
            series = [
                NewJob(
                    owner=caller.name,
                    params={**first, "seed": (first["seed"] + number) % 2**32},
                    inputs=inputs,
                    batch_key=key,
                    fingerprint=asked.fingerprint,
                    deadline=deadline,
                    preview_every=asked.preview_every,
                    max_active=caller.max_active,
                    traceparent=caller.traceparent,
                )
                for number in range(count)
            ]
            return self.store.submit_all(series)

        return await self._accept_for_a_visitor(caller.name, accept)

    async def check_ready(self) -> None:
        """Return if pictures can be made and kept.

        Raises:
            Problem: 503 if not.
        """
        await self.dispatcher.check_ready()
        try:
            free = await asyncio.to_thread(self.store.files.free_bytes)
        except OSError:
            free = 0
        least = self.config.jobs.min_free_bytes
        if free is not None and free < least:
            raise errors.no_room(free, least)

    async def check_places(self, count: int) -> None:
        """Refuse before the expensive part.

        Raises:
            QueueFull: If so many jobs have no place in the queue.
        """
        queued = await asyncio.to_thread(self.store.num_queued)
        if queued + count > self.config.max_queued_requests:
            raise QueueFull

    async def decode(self, files: dict[str, bytes], limits: LimitsConfig) -> dict[str, Decoded]:
        """Decode untrusted pictures.

        Raises:
            ImageError: For a picture that cannot be used.
        """
        async with self._decoding:
            return await asyncio.to_thread(decode, files, limits, self.decoders)

    async def preprocess(self, caller: Caller, name: str, picture: bytes | str, kind: str) -> bytes:
        """Lines or mask of one picture as a PNG file.

        Args:
            caller: Who asks.
            name: Field of the picture.
            picture: An untrusted file, or the id of an upload.
            kind: One of ``preprocess.KINDS``.

        Raises:
            ImageError: For a picture that cannot be used.
            Problem: 404 if there is no such upload.
        """
        if isinstance(picture, str):
            found = await asyncio.to_thread(self.find_upload, caller, name, picture)
            try:
                packed = await asyncio.to_thread(self.store.pictures.read, found[0])
            except FileNotFoundError:
                raise errors.not_found(f"upload {picture} (for {name})") from None
        else:
            packed = (await self.decode({name: picture}, caller.limits))[name].packed
        async with self._decoding:
            return await asyncio.to_thread(lambda: KINDS[kind](unpack(packed)))

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

    def picture(
        self, snapshot: Snapshot, number: int, file_format: Format, metadata: bool = True
    ) -> bytes:
        """A finished picture as a file; slow, so not for the event loop.

        Args:
            snapshot: The job.
            number: Which of its pictures.
            file_format: The kind of file.
            metadata: Whether the settings are in it.

        Raises:
            Problem: 404 if the job has no such picture.
            FormatError: If the format cannot hold it.
        """
        try:
            kept = self.store.files.read(find_image(snapshot, number).path)
        except FileNotFoundError:
            raise errors.not_found(f"picture {number} of job {snapshot.job.id}") from None
        return convert(kept, file_format, metadata)

    async def _accept_for_a_visitor(
        self, owner: str, accept: Callable[[], list[Snapshot]]
    ) -> list[Snapshot]:
        """Accept jobs; a visitor who leaves meanwhile takes them along."""
        accepting = asyncio.ensure_future(asyncio.to_thread(accept))

        def cancel(accepted: asyncio.Future[list[Snapshot]]) -> None:
            if not accepted.cancelled() and accepted.exception() is None:
                for snapshot in accepted.result():
                    self.cancel_soon(owner, snapshot.job.id)

        try:
            return await asyncio.shield(accepting)
        except asyncio.CancelledError:
            accepting.add_done_callback(cancel)
            raise

    def _accept(
        self,
        caller: Caller,
        asked: Asked,
        decoded: dict[str, Decoded],
        params: dict,
        fingerprint: str,
        key: str | None,
        deadline: float | None,
    ) -> Snapshot:
        inputs, sizes = self._keep(caller, asked, decoded, params)
        return self.store.submit(
            NewJob(
                owner=caller.name,
                params=params,
                inputs=inputs,
                batch_key=batch_key(sizes, params),
                fingerprint=fingerprint,
                idempotency_key=key,
                deadline=deadline,
                priority=asked.priority,
                preview_every=asked.preview_every,
                max_active=caller.max_active,
                traceparent=caller.traceparent,
                webhook=asked.webhook,
            )
        )

    def _keep(
        self, caller: Caller, asked: Asked, decoded: dict[str, Decoded], params: dict
    ) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
        """Keep a request's pictures; their ids and sizes by input name."""
        sizes = {name: each.size for name, each in decoded.items()}
        inputs = {}
        for name, upload_id in asked.uploads.items():
            inputs[name], sizes[name] = self.find_upload(caller, name, upload_id)
        check_other_side(sizes["sketch"], params, caller.limits.max_side)
        checked = [(each.packed, each.size) for each in decoded.values()]
        kept = self.store.pictures.add_all(caller.name, checked) if checked else []
        inputs |= {name: picture.id for name, picture in zip(decoded, kept, strict=True)}
        return inputs, sizes

    def find_upload(self, caller: Caller, name: str, upload_id: str) -> tuple[str, tuple[int, int]]:
        """An upload's id and size.

        Raises:
            Problem: 404 if there is none or its time is over.
        """
        picture = self.store.pictures.find(caller.name, upload_id)
        if picture is None or (picture.expires_at or 0) < time.time():
            raise errors.not_found(f"upload {upload_id} (for {name})")
        return picture.id, (picture.width, picture.height)


def find_image(snapshot: Snapshot, number: int) -> Image:
    """A finished picture's row.

    Raises:
        Problem: 404 if the job has no such picture.
    """
    image = next((image for image in snapshot.images if image.number == number), None)
    if image is None:
        raise errors.not_found(f"picture {number} of job {snapshot.job.id}")
    return image
