"""Answers that several routes give, and how the API describes them."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from nurie.inference.formats import FORMATS
from nurie_serve import errors
from nurie_serve.documents import JobDocument

_PROBLEM = {"content": {errors.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}

_MEANINGS = {
    400: "the body is missing or broken",
    401: "a key is missing, wrong or has ended",
    403: "the key's scope does not allow this",
    404: "there is no such thing, or it is somebody else's",
    409: "the Idempotency-Key stands for another request",
    413: "the body or a picture is too large",
    415: "a body of another type, or not a PNG, JPEG or WebP picture",
    422: "a field is missing, unknown, damaged or out of range",
    429: "the queue is full; see Retry-After",
    503: "no picture in time; see Retry-After",
    507: "no room for more pictures",
}

PICTURE = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}

FILE = {
    "content": {
        each.media_type: {"schema": {"type": "string", "format": "binary"}}
        for each in FORMATS.values()
    }
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the errors of a route."""
    return {status: {**_PROBLEM, "description": _MEANINGS[status]} for status in statuses}


REFUSED = problems(400, 404, 409, 413, 415, 422, 429, 503, 507)
"""The errors of a route that takes pictures."""


def job_answer(document: JobDocument, status: int) -> JSONResponse:
    """A job, and where it is."""
    headers = {"Location": f"/v1/jobs/{document.id}", "Cache-Control": "no-store"}
    return JSONResponse(document.model_dump(mode="json"), status, headers)
