"""Errors as answers: every refusal is an RFC 9457 problem that names the field."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from nurie.inference.controls import ControlError
from nurie.inference.formats import FormatError
from nurie.inference.images import ImageError
from nurie_serve.jobs.pictures import StorageFull
from nurie_serve.jobs.store import KeyConflict, OwnerBusy, QueueFull
from nurie_serve.logs import logger
from nurie_serve.metrics import REQUESTS_REFUSED
from nurie_serve.request_id import HEADER, current_request_id

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5
_RETRY = {"Retry-After": str(RETRY_AFTER_S)}

_IMAGE_STATUS = {
    "unsupported_image": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "too_many_pixels": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}


class Problem(Exception):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status.
        code: Stable short name of the error, for programs.
        detail: What is wrong and what to do, for people.
        field: The form field at fault, if there is one.
        headers: Further response headers.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = HTTPStatus(status)
        self.code = code
        self.detail = detail
        self.field = field
        self.headers = dict(headers or {})

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Problem:
        """The problem that a job ended with."""
        again = document["status"] == HTTPStatus.SERVICE_UNAVAILABLE
        return cls(
            document["status"],
            document["code"],
            document["detail"],
            document.get("field"),
            _RETRY if again else None,
        )

    def document(self) -> dict[str, Any]:
        """The problem as an RFC 9457 document."""
        body = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status.value,
            "code": self.code,
            "detail": self.detail,
        }
        return body if self.field is None else {**body, "field": self.field}

    def response(self) -> JSONResponse:
        """The problem as the answer to the current request."""
        body, headers = self.document(), dict(self.headers)
        if (request_id := current_request_id()) is not None:
            body["request_id"] = headers[HEADER] = request_id
        return JSONResponse(body, self.status.value, headers, media_type=MEDIA_TYPE)


def busy() -> Problem:
    """All places in the queue are taken."""
    return Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        "queue_full",
        "all places in the queue are taken; try again in a few seconds",
        headers=_RETRY,
    )


def owner_busy(max_active: int) -> Problem:
    """A key has as many jobs as it may."""
    return Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        "key_queue_full",
        f"your key may have {max_active} unfinished jobs at once; wait for one or cancel it",
        headers=_RETRY,
    )


def unavailable() -> Problem:
    """No replica could answer."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "replica_unavailable",
        "the model is restarting; try again in a few seconds",
        headers=_RETRY,
    )


def deadline_exceeded() -> Problem:
    """The picture took longer than it may."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "deadline_exceeded",
        "the picture was not ready in time; try fewer steps or a smaller picture, or try again "
        "later",
        headers=_RETRY,
    )


def worker_lost(attempts: int) -> Problem:
    """A job took its replica down, or was taken down, again and again."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "worker_lost",
        f"{attempts} attempts at this job ended without a picture, because the replica died or "
        "could not go on; it is not tried again",
        headers=_RETRY,
    )


def out_of_memory() -> Problem:
    """The picture does not fit."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "out_of_memory",
        "the server has too little memory for this picture; try a smaller one",
        headers=_RETRY,
    )


def storage_full() -> Problem:
    """No room for pictures or jobs."""
    return Problem(
        HTTPStatus.INSUFFICIENT_STORAGE,
        "storage_full",
        "the server has no room for more pictures; delete jobs that are done, or try again later",
    )


def no_room(free: int, least: int) -> Problem:
    """Little is left of the disk: others should take new work."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "storage_full",
        f"{free} bytes are free for jobs, and jobs.min_free_bytes is {least}",
        headers=_RETRY,
    )


def internal() -> Problem:
    """A defect; nothing is told of it."""
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal_error",
        "the request failed; see the server's log",
    )


def not_found(what: str) -> Problem:
    """There is no such thing, or it is somebody else's."""
    return Problem(HTTPStatus.NOT_FOUND, "not_found", f"there is no {what}")


def to_problem(error: Exception) -> Problem:
    """The problem that answers an exception; of an unexpected one it tells nothing."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ImageError):
        status = _IMAGE_STATUS.get(error.code, HTTPStatus.UNPROCESSABLE_ENTITY)
        return Problem(status, error.code, error.message, error.field)
    if isinstance(error, ControlError):
        code = "unknown_field" if error.unknown else "out_of_range"
        return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, code, error.message, error.field)
    if isinstance(error, FormatError):
        return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "out_of_range", str(error), "format")
    if isinstance(error, RequestValidationError):
        (*_, name), message = error.errors()[0]["loc"], error.errors()[0]["msg"]
        return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "out_of_range", message, str(name))
    if isinstance(error, HTTPException):
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        return Problem(error.status_code, code, error.detail, headers=error.headers)
    if isinstance(error, QueueFull):
        return busy()
    if isinstance(error, OwnerBusy):
        return owner_busy(error.max_active)
    if isinstance(error, StorageFull) or disk_is_full(error):
        return storage_full()
    if isinstance(error, KeyConflict):
        return Problem(
            HTTPStatus.CONFLICT,
            "idempotency_conflict",
            "this Idempotency-Key stands for another request; use a new one",
            "Idempotency-Key",
        )
    if isinstance(error, OperationalError):
        return Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "store_unavailable",
            "the job store does not answer; try again in a few seconds",
            headers=_RETRY,
        )
    return internal()


def disk_is_full(error: Exception) -> bool:
    """Whether an error of a file or of the store says that there is no space."""
    if isinstance(error, OperationalError):
        return "disk is full" in str(error.orig)
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


_EXPECTED = (
    Problem,
    ImageError,
    ControlError,
    FormatError,
    RequestValidationError,
    HTTPException,
    QueueFull,
    OwnerBusy,
    KeyConflict,
    StorageFull,
)


def install_handlers(app: FastAPI) -> None:
    """Answer every exception of the application with a problem document."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        problem = to_problem(error)
        REQUESTS_REFUSED.inc(1, {"status": str(problem.status.value), "code": problem.code})
        if problem.code in ("internal_error", "storage_full", "store_unavailable"):
            logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem.response()

    # Exception alone would do, but what it answers is also raised again, into the log.
    for kind in _EXPECTED:
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(Exception, answer)
