"""``POST /v1/colorize``: submit and wait."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from nurie.inference.formats import FORMATS, Format
from nurie_serve import errors
from nurie_serve.asked import read_request
from nurie_serve.caller import WhoAsks
from nurie_serve.errors import Problem
from nurie_serve.jobs.store import Snapshot
from nurie_serve.routes.answers import FILE, REFUSED, job_answer
from nurie_serve.schema import colorize_request_schema
from nurie_serve.service import Service

_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        **FILE,
        "description": "the picture in the format that Accept names (PNG), or with Accept: "
        "application/json the finished job",
        "headers": {
            "X-Seed": {"schema": {"type": "integer"}},
            "X-Model": {"schema": {"type": "string"}},
            "X-Job-Id": {"schema": {"type": "string"}},
        },
    },
    202: {"description": "the seconds of Prefer: wait=N are over; the work goes on at Location"},
    **REFUSED,
}


def router(service: Service) -> APIRouter:
    """The route over a service."""
    routes = APIRouter(tags=["colorize"])
    limits = service.config.limits

    @routes.post(
        "/v1/colorize",
        response_class=Response,
        responses=_RESPONSES,
        openapi_extra={"requestBody": colorize_request_schema(service.controls)},
    )
    async def colorize(request: Request, caller: WhoAsks) -> Response:
        """Colour one sketch and return the picture."""
        deadline = time.time() + limits.deadline_s
        patience = _patience(request)
        submitted: Snapshot | None = None
        try:
            # Ray Serve's own time-out can be switched off by a client's header; this one cannot.
            async with asyncio.timeout(limits.deadline_s):
                asked = await read_request(request, caller)
                submitted = await service.submit(
                    caller, asked, deadline=None if patience else deadline
                )
                service.dispatcher.call()
                async with asyncio.timeout(patience):
                    done = await service.wait(caller.name, submitted.job.id)
        except TimeoutError:
            if submitted is not None and patience is not None:
                return job_answer(service.document(submitted), 202)
            _give_up(service, caller.name, submitted)
            raise errors.deadline_exceeded() from None
        except asyncio.CancelledError:
            # The visitor left.
            if patience is None:
                _give_up(service, caller.name, submitted)
            raise
        return await _answer(service, request, done)

    return routes


async def _answer(service: Service, request: Request, done: Snapshot) -> Response:
    if "application/json" in _accept(request):
        return JSONResponse(service.document(done).model_dump(mode="json"))
    if not done.images:
        raise _failure(done)
    wanted = _wanted(request)
    data = await asyncio.to_thread(service.picture, done, 0, wanted)
    headers = {
        "X-Seed": str(done.images[0].seed),
        "X-Model": done.job.model or "",
        "X-Job-Id": done.job.id,
        "Cache-Control": "no-store",
    }
    return Response(data, media_type=wanted.media_type, headers=headers)


def _wanted(request: Request) -> Format:
    """The first format that ``Accept`` names, else PNG."""
    accepted = [part.partition(";")[0].strip() for part in _accept(request).split(",")]
    by_type = {each.media_type: each for each in FORMATS.values()}
    return next((by_type[each] for each in accepted if each in by_type), FORMATS["png"])


def _accept(request: Request) -> str:
    return request.headers.get("accept", "").lower()


def _failure(done: Snapshot) -> Problem:
    if done.job.error is not None:
        return Problem.from_document(done.job.error)
    return Problem(409, "cancelled", f"job {done.job.id} was cancelled")


def _give_up(service: Service, owner: str, submitted: Snapshot | None) -> None:
    if submitted is not None:
        service.cancel_soon(owner, submitted.job.id)


def _patience(request: Request) -> float | None:
    """Seconds of ``Prefer: wait=N`` (RFC 7240); None waits for the picture."""
    found = re.search(r"\bwait=(\d{1,6})\b", request.headers.get("prefer", ""))
    return float(found[1]) if found else None
