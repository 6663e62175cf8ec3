"""``/v1/batches``: every sketch with every reference and every seed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
import zipfile
from collections.abc import Iterator
from http import HTTPStatus
from typing import IO, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import FormData, UploadFile

from nurie.inference.controls import ControlError
from nurie.inference.formats import FORMATS
from nurie.inference.images import ImageError
from nurie_serve import errors
from nurie_serve.batches import AskedBatch, BatchStore, Source, batch_document, file_name
from nurie_serve.caller import Caller, WhoAsks
from nurie_serve.documents import BatchDocument
from nurie_serve.errors import Problem, to_problem
from nurie_serve.form import check_upload_id, digest_of, invalid, read_controls, read_form
from nurie_serve.jobs.store import Snapshot
from nurie_serve.jobs.tables import FINAL, SUCCEEDED, Batch
from nurie_serve.routes.answers import REFUSED, problems
from nurie_serve.routes.jobs import IdempotencyKey
from nurie_serve.schema import SIDE_FIELDS, WEBHOOK, form_schema
from nurie_serve.service import Service

_SEED = "seed"
_LISTS = ("sketch", "reference")
_CHUNK = 2**20
_ZIP: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        "description": "the finished pictures, and batch.json that describes all",
    }
}


def router(service: Service) -> APIRouter:
    """The routes over a service."""
    routes = APIRouter(prefix="/v1/batches", tags=["batches"])
    batches = BatchStore(service.store)
    _add_submission(routes, service, batches)
    _add_reading(routes, service, batches)
    return routes


def _add_submission(routes: APIRouter, service: Service, batches: BatchStore) -> None:
    @routes.post(
        "",
        status_code=HTTPStatus.ACCEPTED,
        response_class=JSONResponse,
        responses={202: {"model": BatchDocument, "description": "accepted"}, **REFUSED},
        openapi_extra={"requestBody": _request_schema(service)},
    )
    async def submit(
        request: Request, caller: WhoAsks, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Accept sketches times references times seeds; an item that cannot be made fails alone."""
        form = await read_form(request, service.config.limits.max_batch_images)
        try:
            batch = await _submit(service, batches, form, caller, idempotency_key)
        finally:
            await form.close()
        found = await asyncio.to_thread(batches.get, caller.name, batch.id)
        assert found is not None
        headers = {"Location": f"/v1/batches/{batch.id}"}
        return JSONResponse(batch_document(*found).model_dump(mode="json"), 202, headers)


def _add_reading(routes: APIRouter, service: Service, batches: BatchStore) -> None:
    async def find(owner: str, batch_id: str) -> tuple[Batch, dict[str, Snapshot]]:
        found = await asyncio.to_thread(batches.get, owner, batch_id)
        if found is None:
            raise errors.not_found(f"batch {batch_id}")
        return found

    @routes.get("/{batch_id}", responses=problems(404))
    async def get_batch(batch_id: str, caller: WhoAsks) -> BatchDocument:
        """How a batch is doing, item by item."""
        return batch_document(*await find(caller.name, batch_id))

    @routes.post("/{batch_id}/cancel", responses=problems(404))
    async def cancel(batch_id: str, caller: WhoAsks) -> BatchDocument:
        """Cancel those jobs of a batch that have not ended."""
        _, snapshots = await find(caller.name, batch_id)
        for job_id, snapshot in snapshots.items():
            if snapshot.job.status not in FINAL:
                await asyncio.to_thread(service.store.cancel, caller.name, job_id)
        return batch_document(*await find(caller.name, batch_id))

    @routes.get(
        "/{batch_id}/archive.zip",
        response_class=StreamingResponse,
        responses={**_ZIP, **problems(404)},
    )
    async def archive(batch_id: str, caller: WhoAsks) -> StreamingResponse:
        """The finished pictures of a batch in one file."""
        batch, snapshots = await find(caller.name, batch_id)
        file = await asyncio.to_thread(_zip, service, batch_document(batch, snapshots), snapshots)
        headers = {"Content-Disposition": f'attachment; filename="{batch_id}.zip"'}
        return StreamingResponse(_chunks(file), media_type="application/zip", headers=headers)


async def _submit(
    service: Service, batches: BatchStore, form: FormData, caller: Caller, key: str | None
) -> Batch:
    seeds = _read_seeds(form, service)
    plain = FormData([(k, v) for k, v in form.multi_items() if k not in (_SEED, *_LISTS)])
    for name in ("background", "mask"):
        if name in plain:
            raise invalid(name, "unknown_field", "a batch has sketches and references only")
    values = read_controls(plain, caller.controls)
    given = {name: form.getlist(name) for name in _LISTS}
    count = len(seeds) * len(given["sketch"]) * len(given["reference"])
    most = service.config.limits.max_batch_images
    for name in _LISTS:
        if not given[name]:
            raise invalid(name, "missing_field", f"the {name} pictures are missing")
    if count > most:
        raise invalid(_SEED, "out_of_range", f"{count} pictures; at most {most} are allowed")
    data = {
        name: [await v.read() if isinstance(v, UploadFile) else v for v in parts]
        for name, parts in given.items()
    }
    contents = {name: [_digest(each) for each in parts] for name, parts in data.items()}
    fingerprint = digest_of([values, seeds, contents])
    if key is not None:
        repeated = await asyncio.to_thread(batches.find_repeated, caller.name, key, fingerprint)
        if repeated is not None:
            return repeated
    await service.check_places(count)
    sources = {
        name: [
            await _source(service, caller, name, part, each)
            for part, each in zip(given[name], data[name], strict=True)
        ]
        for name in _LISTS
    }
    asked = AskedBatch(sources["sketch"], sources["reference"], seeds, values, fingerprint, key)
    batch = await asyncio.to_thread(batches.submit, caller, asked)
    for item in batch.items:
        if item["job"]:
            service.dispatcher.call()
    return batch


async def _source(
    service: Service, caller: Caller, name: str, part: UploadFile | str, data: bytes | str
) -> Source:
    """A picture of the form, or why it cannot be used."""
    try:
        if isinstance(data, str):
            check_upload_id(name, data)
            found = await asyncio.to_thread(service.find_upload, caller, name, data)
            return Source(data, *found)
        decoded = (await service.decode({name: data}, caller.limits))[name]
    except (ImageError, Problem) as error:
        return Source(_name(part), error=to_problem(error).document())
    add = service.store.pictures.add
    picture = await asyncio.to_thread(add, caller.name, decoded.packed, decoded.size)
    return Source(_name(part), picture.id, decoded.size)


def _digest(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def _name(part: UploadFile | str) -> str:
    return part if isinstance(part, str) else (part.filename or "")[-100:]


def _read_seeds(form: FormData, service: Service) -> list[int | None]:
    control = next(each for each in service.controls if each.name == _SEED)
    seeds: list[int | None] = []
    for text in form.getlist(_SEED):
        if not isinstance(text, str):
            raise ControlError(_SEED, f"a file is not {control.allowed}")
        seeds.append(int(control.parse_text(text)))
    return seeds or [None]


def _request_schema(service: Service) -> dict[str, Any]:
    body = form_schema(service.controls)
    properties = body["content"]["multipart/form-data"]["schema"]["properties"]
    for name in ("background", "mask", *(field.name for field in SIDE_FIELDS), WEBHOOK):
        del properties[name]
    for name in (*_LISTS, _SEED):
        one = properties[name]
        properties[name] = {"type": "array", "items": one, "description": one["description"]}
    return body


def _zip(service: Service, document: BatchDocument, snapshots: dict[str, Snapshot]) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by its reader
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for item in document.items:
            if item.status == SUCCEEDED and item.job is not None:
                png = service.picture(snapshots[item.job], 0, FORMATS["png"])
                archive.writestr(file_name(item, "png"), png)
        text = json.dumps(document.model_dump(mode="json"), indent=2)
        archive.writestr("batch.json", text)
    file.seek(0)
    return file


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk
