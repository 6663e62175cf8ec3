"""``/v1/jobs``: work that goes on whoever waits."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from nurie.inference.formats import FORMATS, find_format
from nurie_serve import errors
from nurie_serve.asked import read_request
from nurie_serve.caller import WhoAsks
from nurie_serve.documents import CountDocument, JobDocument, JobPage, JobStatus
from nurie_serve.jobs.tables import QUEUED, RUNNING
from nurie_serve.routes.answers import FILE, REFUSED, job_answer, problems
from nurie_serve.schema import colorize_request_schema
from nurie_serve.service import Service, find_image

_MAX_KEY_LENGTH = 200
_PAGE = 50
_FORMATS = f"one of {', '.join(FORMATS)}"
_ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {
        "model": JobDocument,
        "description": "accepted and not lost any more; Location names the job",
        "headers": {"Location": {"schema": {"type": "string"}}},
    },
    **REFUSED,
}
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=_MAX_KEY_LENGTH,
        description="the same key and body give the same job, however often they are sent",
    ),
]


def router(service: Service) -> APIRouter:
    """The routes over a service."""
    routes = APIRouter(prefix="/v1/jobs", tags=["jobs"])
    _add_submission(routes, service)
    _add_reading(routes, service)
    _add_ending(routes, service)
    return routes


def _add_submission(routes: APIRouter, service: Service) -> None:
    @routes.post(
        "",
        status_code=HTTPStatus.ACCEPTED,
        response_class=JSONResponse,
        responses=_ACCEPTED,
        openapi_extra={"requestBody": colorize_request_schema(service.controls)},
    )
    async def submit(
        request: Request, caller: WhoAsks, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Accept a sketch to colour; the answer comes at once, the picture later."""
        asked = await read_request(request, caller)
        snapshot = await service.submit(caller, asked, key=idempotency_key)
        service.dispatcher.call()
        return job_answer(service.document(snapshot), HTTPStatus.ACCEPTED)


def _add_reading(routes: APIRouter, service: Service) -> None:
    store = service.store

    @routes.get("", responses=problems(422))
    async def list_jobs(
        caller: WhoAsks,
        status: JobStatus | None = None,
        limit: Annotated[int, Query(ge=1, le=200)] = _PAGE,
        cursor: Annotated[str | None, Query(max_length=100)] = None,
    ) -> JobPage:
        """The caller's jobs, newest first."""
        found = await asyncio.to_thread(store.list_jobs, caller.name, status, limit, cursor)
        documents = [service.document(each) for each in found]
        return JobPage(jobs=documents, cursor=documents[-1].id if len(found) == limit else None)

    @routes.get("/{job_id}", responses=problems(404))
    async def get_job(job_id: str, caller: WhoAsks) -> JobDocument:
        """How a job is doing."""
        return service.document(await service.find(caller.name, job_id))

    @routes.get(
        "/{job_id}/images/{number}",
        response_class=Response,
        responses={200: {**FILE, "description": "the file"}, **problems(404, 422)},
    )
    async def get_image(
        job_id: str,
        number: int,
        caller: WhoAsks,
        request: Request,
        format: Annotated[str, Query(max_length=20, description=_FORMATS)] = "png",
        metadata: Annotated[bool, Query(description="whether its settings are in it")] = True,
    ) -> Response:
        """A finished picture; PSD and OpenRaster hold line, colour, background and mask."""
        wanted = find_format(format)
        snapshot = await service.find(caller.name, job_id)
        plain = "" if metadata else "-plain"
        tag = f'"{find_image(snapshot, number).sha256}-{wanted.name}{plain}"'
        headers = {"ETag": tag, "Cache-Control": "private, max-age=3600"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        data = await asyncio.to_thread(service.picture, snapshot, number, wanted, metadata)
        name = f"{job_id}-{number}.{wanted.name}"
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
        return Response(data, media_type=wanted.media_type, headers=headers)


def _add_ending(routes: APIRouter, service: Service) -> None:
    store = service.store

    @routes.post("/cancel")
    async def cancel_all(caller: WhoAsks, status: JobStatus | None = None) -> CountDocument:
        """Cancel all jobs of the caller that have not ended, or those of one status."""
        statuses = [each for each in (QUEUED, RUNNING) if status in (None, each)]
        count = await asyncio.to_thread(store.cancel_all, caller.name, statuses)
        service.watcher.look_now()
        return CountDocument(count=count)

    @routes.post("/{job_id}/cancel", responses=problems(404))
    async def cancel(job_id: str, caller: WhoAsks) -> JobDocument:
        """Cancel a job; one that has ended stays as it is."""
        snapshot = await asyncio.to_thread(store.cancel, caller.name, job_id)
        if snapshot is None:
            raise errors.not_found(f"job {job_id}")
        service.watcher.look_now()
        return service.document(snapshot)

    @routes.delete("/{job_id}", status_code=HTTPStatus.NO_CONTENT, responses=problems(404))
    async def delete(job_id: str, caller: WhoAsks) -> None:
        """Delete a job and its pictures; one that runs is cancelled."""
        if not await asyncio.to_thread(store.delete, caller.name, job_id):
            raise errors.not_found(f"job {job_id}")
        service.watcher.look_now()
