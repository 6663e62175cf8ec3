"""``POST /v1/images/edits`` in OpenAI's form, for programs that speak it already.

The first picture is the sketch, the second the reference. Prompts are accepted, because OpenAI's
clients always send one, and have no effect: the reference says what the picture becomes.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import FormData, UploadFile

from nurie.inference.controls import Control, ControlError
from nurie.inference.formats import FORMATS
from nurie_serve import errors
from nurie_serve.asked import Asked
from nurie_serve.caller import Caller, WhoAsks
from nurie_serve.errors import Problem, to_problem
from nurie_serve.form import invalid, read_controls, read_form
from nurie_serve.jobs.store import Snapshot
from nurie_serve.schema import control_schema
from nurie_serve.service import Service

_IMAGES = ("image[]", "image")
_WITHOUT_EFFECT = ("prompt", "model", "user")
_COUNT = Control(
    "n", int, 1, "number of pictures; their seeds follow each other", minimum=1, maximum=10
)
_PARTIAL = Control("partial_images", int, 0, "previews in a stream", minimum=0, maximum=3)
_STREAM = Control("stream", bool, False, "answer with server-sent events")
_FORMAT = Control("output_format", str, "png", "file format", choices=tuple(FORMATS))
_ENCODING = Control("response_format", str, "b64_json", "always base64", choices=("b64_json",))
_FIELDS = (_COUNT, _PARTIAL, _STREAM, _FORMAT, _ENCODING)
_SIZE = "size"


@dataclass(frozen=True)
class Edit:
    """A request in OpenAI's form.

    Args:
        asked: Sketch, reference and controls.
        count: Number of pictures.
        partial_images: Previews in a stream.
        stream: Answer with events.
        output_format: File format.
    """

    asked: Asked
    count: int
    partial_images: int
    stream: bool
    output_format: str


def router(service: Service) -> APIRouter:
    """The route over a service."""
    routes = APIRouter(tags=["colorize"])

    @routes.post(
        "/v1/images/edits",
        response_class=JSONResponse,
        responses={
            200: {"description": "{created, data: [{b64_json}]}, or its two kinds of events"},
            "4XX": {"description": "{error: {message, type, param, code}}"},
        },
        openapi_extra={"requestBody": _request_schema(service)},
    )
    async def edit(request: Request, caller: WhoAsks) -> Response:
        """Colour image[0] with image[1] as the reference, in OpenAI's form."""
        return await _in_their_form(lambda: _edit(service, request, caller))

    return routes


async def _edit(service: Service, request: Request, caller: Caller) -> Response:
    form = await read_form(request)
    try:
        wanted = await _read(form, caller.controls)
    finally:
        await form.close()
    owner = caller.name
    jobs = await _submit(service, caller, wanted)
    if wanted.stream:
        return StreamingResponse(
            _events(service, owner, jobs[0], wanted),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
    try:
        async with asyncio.timeout(service.config.limits.deadline_s):
            done = await asyncio.gather(*(service.wait(owner, job.job.id) for job in jobs))
    except (TimeoutError, asyncio.CancelledError) as error:
        for job in jobs:
            service.cancel_soon(owner, job.job.id)
        if isinstance(error, asyncio.CancelledError):
            raise
        raise errors.deadline_exceeded() from None
    pictures = [await _picture(service, each, wanted.output_format) for each in done]
    body = {"created": int(time.time()), "output_format": wanted.output_format}
    return JSONResponse({**body, "data": [{"b64_json": picture} for picture in pictures]})


async def _read(form: FormData, available: tuple[Control, ...]) -> Edit:
    images = [part for name in _IMAGES for part in form.getlist(name)]
    if len(images) != 2 or not all(isinstance(part, UploadFile) for part in images):
        raise invalid("image[]", "missing_field", "send two files: the sketch, then the reference")
    files = dict(zip(("sketch", "reference"), images, strict=True))
    for name in ("mask", "background", "quality", "input_fidelity"):
        if name in form:
            raise invalid(name, "unknown_field", "has no equivalent here; leave it out")
    own = {field.name: _field(form, field) for field in _FIELDS}
    if own["stream"] and own["n"] != 1:
        raise invalid("n", "out_of_range", "a stream has one picture")
    known = (*_IMAGES, *_WITHOUT_EFFECT, *own, _SIZE)
    controls = FormData([(k, v) for k, v in form.multi_items() if k not in known])
    values = read_controls(controls, available)
    values |= _size(form, available)
    data = {name: await part.read() for name, part in files.items() if isinstance(part, UploadFile)}
    every = 1 if own["partial_images"] else 0
    asked = Asked(values, data, {}, every)
    return Edit(asked, own["n"], own["partial_images"], own["stream"], own["output_format"])


def _field(form: FormData, field: Control) -> Any:
    text = form.get(field.name)
    return field.default if text is None else field.parse_text(str(text))


def _size(form: FormData, controls: tuple[Control, ...]) -> dict[str, Any]:
    """``size``: auto, or width x height."""
    text = str(form.get(_SIZE) or "auto")
    if text == "auto":
        return {}
    known = {control.name: control for control in controls}
    width, _, height = text.partition("x")
    try:
        return {
            name: known[name].parse_text(side)
            for name, side in (("width", width), ("height", height))
        }
    except ControlError as error:
        raise invalid(
            _SIZE, "out_of_range", f"{text!r} is not auto or e.g. 512x768: {error}"
        ) from None


async def _submit(service: Service, caller: Caller, wanted: Edit) -> list[Snapshot]:
    deadline = time.time() + service.config.limits.deadline_s
    jobs = await service.submit_series(caller, wanted.asked, wanted.count, deadline)
    for _ in jobs:
        service.dispatcher.call()
    return jobs


async def _picture(service: Service, done: Snapshot, output_format: str) -> str:
    if not done.images:
        raise Problem.from_document(done.job.error) if done.job.error else errors.unavailable()
    data = await asyncio.to_thread(service.picture, done, 0, FORMATS[output_format])
    return base64.b64encode(data).decode()


async def _events(service: Service, owner: str, job: Snapshot, wanted: Edit) -> AsyncIterator[str]:
    """Partial images as they come, then the picture."""
    shown, after, done = 0, 0, None
    try:
        with service.watcher.listen(job.job.id) as changed:
            while done is None:
                changed.clear()
                for event in await asyncio.to_thread(service.store.events, job.job.id, after):
                    after = event.number
                    if event.kind == "preview" and shown < wanted.partial_images:
                        image = event.data["image"].partition(",")[2]
                        yield _event("partial_image", b64_json=image, partial_image_index=shown)
                        shown += 1
                snapshot = await service.find(owner, job.job.id)
                if snapshot.job.finished_at is None:
                    await changed.wait()
                else:
                    done = snapshot
        picture = await _picture(service, done, wanted.output_format)
        yield _event("completed", b64_json=picture, output_format=wanted.output_format)
    except Problem as problem:
        yield f"event: error\ndata: {json.dumps(_their_error(problem))}\n\n"
    finally:
        if done is None:
            # The reader left.
            service.cancel_soon(owner, job.job.id)


def _event(kind: str, **data: Any) -> str:
    name = f"image_edit.{kind}"
    body = {"type": name, "created_at": int(time.time()), **data}
    return f"event: {name}\ndata: {json.dumps(body)}\n\n"


async def _in_their_form(answer: Callable[[], Awaitable[Response]]) -> Response:
    try:
        return await answer()
    except Exception as error:
        problem = to_problem(error)
        if problem.code == "internal_error":
            raise
        return JSONResponse(_their_error(problem), problem.status.value, problem.headers)


def _their_error(problem: Problem) -> dict[str, Any]:
    ours = problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    kind = "server_error" if ours else "invalid_request_error"
    error = {"message": problem.detail, "type": kind, "param": problem.field, "code": problem.code}
    return {"error": error}


def _request_schema(service: Service) -> dict[str, Any]:
    file = {"type": "string", "format": "binary"}
    text = {"type": "string", "description": "accepted without effect"}
    properties: dict[str, Any] = {
        "image[]": {"type": "array", "items": file, "description": "the sketch, the reference"},
        **dict.fromkeys(_WITHOUT_EFFECT, text),
        _SIZE: {"type": "string", "description": "auto, or width x height", "default": "auto"},
        **{field.name: control_schema(field) for field in _FIELDS},
        **{control.name: control_schema(control) for control in service.controls},
    }
    form = {"type": "object", "required": ["image[]"], "properties": properties}
    return {"required": True, "content": {"multipart/form-data": {"schema": form}}}
