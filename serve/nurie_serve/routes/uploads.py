"""``/v1/uploads``: a picture that is sent once and used by many jobs."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile

from nurie_serve import errors
from nurie_serve.caller import WhoAsks
from nurie_serve.documents import UploadDocument, moment
from nurie_serve.form import invalid, read_form
from nurie_serve.jobs.tables import Picture
from nurie_serve.routes.answers import problems
from nurie_serve.service import Service

FIELD = "image"
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "properties": {
                    FIELD: {"type": "string", "format": "binary", "description": "the picture"}
                },
            }
        }
    },
}


def router(service: Service) -> APIRouter:
    """The routes over a service."""
    routes = APIRouter(prefix="/v1/uploads", tags=["uploads"])
    pictures = service.store.pictures

    @routes.post(
        "",
        status_code=HTTPStatus.CREATED,
        responses=problems(400, 413, 415, 422, 507),
        openapi_extra={"requestBody": _BODY},
    )
    async def upload(request: Request, caller: WhoAsks) -> UploadDocument:
        """Send a picture; its id then stands in the place of the file."""
        form = await read_form(request, max_files=2)
        try:
            given = form.getlist(FIELD)
            if len(given) != 1 or not isinstance(given[0], UploadFile):
                raise invalid(FIELD, "missing_field", "send exactly one file")
            data = await given[0].read()
        finally:
            await form.close()
        decoded = (await service.decode({FIELD: data}, caller.limits))[FIELD]
        expires_at = time.time() + service.config.jobs.keep_s
        picture = await asyncio.to_thread(
            pictures.add, caller.name, decoded.packed, decoded.size, expires_at
        )
        return _document(picture)

    @routes.get("/{upload_id}", responses=problems(404))
    async def get_upload(upload_id: str, caller: WhoAsks) -> UploadDocument:
        """Describe an upload."""
        picture = await asyncio.to_thread(pictures.find, caller.name, upload_id)
        if picture is None or picture.expires_at is None:
            raise errors.not_found(f"upload {upload_id}")
        return _document(picture)

    @routes.delete("/{upload_id}", status_code=HTTPStatus.NO_CONTENT, responses=problems(404))
    async def delete_upload(upload_id: str, caller: WhoAsks) -> None:
        """Delete an upload; jobs that use it keep it until they are deleted."""
        if not await asyncio.to_thread(pictures.forget, caller.name, upload_id):
            raise errors.not_found(f"upload {upload_id}")

    return routes


def _document(picture: Picture) -> UploadDocument:
    expires_at = moment(picture.expires_at)
    assert expires_at is not None
    return UploadDocument(
        upload_id=picture.id,
        sha256=picture.digest,
        width=picture.width,
        height=picture.height,
        expires_at=expires_at,
    )
