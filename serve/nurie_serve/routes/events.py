"""``/v1/jobs/{id}/events``: what happens to a job, while it happens (server-sent events)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import StreamingResponse

from nurie_serve.caller import WhoAsks
from nurie_serve.jobs.tables import CANCELLED, FAILED, QUEUED
from nurie_serve.routes.answers import problems
from nurie_serve.service import Service

_ENDS = ("done", FAILED, CANCELLED)
_PLACE_EVERY_S = 1.0
_PING_EVERY_S = 15.0
_DESCRIPTION = (
    "`queued` {position, eta_s}, `started` {attempt}, `progress` {step, steps, eta_s}, `preview` "
    "{step, image: data URL}, and at the end `done`, `failed` or `cancelled` with the job"
)
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "description": _DESCRIPTION,
    },
    **problems(404),
}


def router(service: Service) -> APIRouter:
    """The route over a service."""
    routes = APIRouter(tags=["jobs"])

    @routes.get("/v1/jobs/{job_id}/events", response_class=StreamingResponse, responses=_RESPONSES)
    async def events(
        job_id: str,
        caller: WhoAsks,
        last_event_id: Annotated[
            str | None, Header(description="replay begins after this event", max_length=40)
        ] = None,
    ) -> StreamingResponse:
        """Follow a job: what has happened so far, then what happens, to its end."""
        snapshot = await service.find(caller.name, job_id)
        after = int(last_event_id) if last_event_id and last_event_id.isdecimal() else 0
        if after > snapshot.job.last_event:
            after = 0
        return StreamingResponse(
            Stream(service, caller.name, job_id, after).lines(),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    return routes


class Stream:
    """The events of one job for one reader.

    Args:
        service: The service.
        owner: Who reads.
        job_id: The job.
        after: Number of the newest event that the reader has.
    """

    def __init__(self, service: Service, owner: str, job_id: str, after: int) -> None:
        self._service = service
        self._owner = owner
        self._job_id = job_id
        self._after = after
        self._place: tuple[int, float | None] | None = None
        self._read = partial(service.watcher.read, job_id)

    async def lines(self) -> AsyncIterator[str]:
        """The stream, event by event."""
        waiting, over, silent_s = False, False, 0.0
        with self._service.watcher.listen(self._job_id) as changed:
            changed.set()
            while True:
                if changed.is_set():
                    changed.clear()
                    silent_s = 0.0
                    events = await self._read(self._service.store.events, self._job_id, self._after)
                    for event in events:
                        self._after = event.number
                        waiting = event.kind == QUEUED
                        if event.kind in _ENDS:
                            yield _event(event.kind, await self._document(), event.number)
                            return
                        yield _event(event.kind, event.data, event.number)
                    if not events:
                        if over:
                            return
                        if over := await self._is_over():
                            changed.set()  # it may have ended after the events were read
                if waiting and (place := await self._moved()):
                    yield _event(QUEUED, {"position": place[0], "eta_s": place[1]})
                patience = _PLACE_EVERY_S if waiting else _PING_EVERY_S
                try:
                    async with asyncio.timeout(patience):
                        await changed.wait()
                except TimeoutError:
                    silent_s += patience
                    if silent_s >= _PING_EVERY_S:
                        silent_s = 0.0
                        yield ": still here\n\n"

    async def _is_over(self) -> bool:
        """Whether nothing more will happen: the reader has it all, or the job was deleted."""
        document = await self._document()
        return document is None or document["finished_at"] is not None

    async def _moved(self) -> tuple[int, float | None] | None:
        """The job's place in the queue, if it is another than before."""
        place = await self._service.watcher.place(self._job_id)
        if place is None or place == self._place:
            return None
        self._place = place
        return place

    async def _document(self) -> dict[str, Any] | None:
        snapshot = await self._read(self._service.store.get, self._owner, self._job_id)
        return snapshot and self._service.document(snapshot).model_dump(mode="json")


def _event(kind: str, data: dict[str, Any] | None, number: int | None = None) -> str:
    """One event; one without a number is not replayed."""
    name = "" if number is None else f"id: {number}\n"
    return f"{name}event: {kind}\ndata: {json.dumps(data)}\n\n"
