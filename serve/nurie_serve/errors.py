"""Errors as answers: every refusal is an RFC 9457 problem that names the field."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from nurie.inference.controls import ControlError
from nurie.inference.images import ImageError

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5

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

    def response(self) -> JSONResponse:
        """The problem as an HTTP response."""
        body = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status.value,
            "code": self.code,
            "detail": self.detail,
        }
        if self.field is not None:
            body["field"] = self.field
        return JSONResponse(body, self.status.value, self.headers, media_type=MEDIA_TYPE)


def busy() -> Problem:
    """All places in the queue are taken."""
    return Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        "queue_full",
        "all places in the queue are taken; try again in a few seconds",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


def unavailable() -> Problem:
    """No replica could answer."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "replica_unavailable",
        "the model is restarting; try again in a few seconds",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


def deadline_exceeded(deadline_s: float) -> Problem:
    """The request took longer than it may."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "deadline_exceeded",
        f"the picture was not ready within {deadline_s:g} seconds; try fewer steps or a smaller "
        "picture, or try again later",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


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
    if isinstance(error, HTTPException):
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        return Problem(error.status_code, code, error.detail, headers=error.headers)
    detail = "the request failed; see the server's log"
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", detail)


def install_handlers(app: FastAPI) -> None:
    """Answer every exception of the application with a problem document."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        problem = to_problem(error)
        if problem.code == "internal_error":
            logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem.response()

    for kind in (Problem, ImageError, ControlError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)
