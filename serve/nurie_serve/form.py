"""Reading a multipart form: pictures, controls, and what they make together."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import Request
from starlette.datastructures import FormData, UploadFile

from nurie.config.serve import LimitsConfig
from nurie.inference.controls import Control, ControlError, parse_controls, unknown_control
from nurie_serve.decoding import DecoderPool
from nurie_serve.errors import Problem
from nurie_serve.schema import IMAGE_INPUTS, REQUIRED_INPUTS

MAX_FIELDS = 64
MAX_FILES = len(IMAGE_INPUTS) + 4
PARAMS = "params"
PREVIEW_EVERY = Control(
    "preview_every",
    int,
    0,
    "steps between two previews in the job's events; 0: none",
    minimum=0,
    maximum=100,
)
"""A field beside the controls: it changes nothing of the picture."""
UPLOAD_ID = re.compile(r"upl_[0-9a-f]{34}")


@dataclass(frozen=True)
class Asked:
    """A request as it was read, pictures not decoded.

    Args:
        values: Every control, checked; None is left to the server.
        files: Untrusted files by input name.
        uploads: Uploads (their ids) by input name.
        preview_every: Steps between two previews; 0: none.
    """

    values: dict[str, Any]
    files: dict[str, bytes]
    uploads: dict[str, str]
    preview_every: int = 0

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that was asked for."""
        files = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        return digest_of([self.values, files, self.uploads, self.preview_every])


@dataclass(frozen=True)
class Decoded:
    """A checked picture.

    Args:
        png: Written anew, without metadata.
        size: Width and height in pixels.
    """

    png: bytes
    size: tuple[int, int]


async def read_request(request: Request, controls: tuple[Control, ...]) -> Asked:
    """Read the form of a colorization.

    Raises:
        Problem: If the body is no such form.
        ControlError: For an unknown control or a value outside its range.
    """
    form = await read_form(request)
    try:
        values = read_controls(form, controls, extra=[PREVIEW_EVERY.name])
        files, uploads = await read_images(form)
        every = form.get(PREVIEW_EVERY.name)
    finally:
        await form.close()
    preview_every = 0 if every is None else PREVIEW_EVERY.parse_text(str(every))
    return Asked(values, files, uploads, int(preview_every))


async def read_form(request: Request, max_files: int = MAX_FILES) -> FormData:
    """Parse the body.

    Args:
        request: The request.
        max_files: Most files.

    Raises:
        Problem: 400 for an empty or broken body, 415 for anything but a multipart form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind and request.headers.get("content-length", "0") == "0":
        raise Problem(HTTPStatus.BAD_REQUEST, "empty_body", "the request has no body")
    if kind != "multipart/form-data":
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            f"send multipart/form-data, not {kind or 'a body without Content-Type'}",
        )
    return await request.form(max_files=max_files, max_fields=MAX_FIELDS)


def read_controls(
    form: FormData, controls: tuple[Control, ...], extra: Collection[str] = ()
) -> dict[str, Any]:
    """Merge the ``params`` object and the single fields into checked controls.

    Args:
        form: The form.
        controls: The controls that exist.
        extra: Names of fields that are something else.

    Raises:
        Problem: 422 for a broken ``params`` or a control given twice.
        ControlError: For an unknown control or a value outside its range.
    """
    known = {control.name: control for control in controls}
    values = _read_params(form.get(PARAMS))
    for name, value in form.multi_items():
        if name in (PARAMS, *IMAGE_INPUTS, *extra):
            continue
        if name not in known:
            raise unknown_control(name, [*IMAGE_INPUTS, PARAMS, *extra, *known])
        if name in values:
            raise invalid(name, "duplicate_field", "given more than once")
        if not isinstance(value, str):
            raise ControlError(name, f"a file is not {known[name].allowed}")
        values[name] = known[name].parse_text(value)
    return parse_controls(values, controls)


async def read_images(form: FormData) -> tuple[dict[str, bytes], dict[str, str]]:
    """Take the pictures out of the form.

    Returns:
        Files by input name, and uploads (their ids) by input name.

    Raises:
        Problem: 422 for a required picture that is missing, one given twice, or text (such as a
            URL) in the place of a file.
    """
    files: dict[str, bytes] = {}
    uploads: dict[str, str] = {}
    for name in IMAGE_INPUTS:
        given = form.getlist(name)
        if len(given) > 1:
            raise invalid(name, "duplicate_field", "given more than once")
        if given:
            value = given[0]
            if isinstance(value, UploadFile):
                files[name] = await value.read()
            else:
                uploads[name] = check_upload_id(name, value)
        elif name in REQUIRED_INPUTS:
            raise invalid(name, "missing_field", f"the {name} picture is missing")
    return files, uploads


def check_upload_id(field: str, text: str) -> str:
    """The id of an upload.

    Raises:
        Problem: 422 for any other text.
    """
    if not UPLOAD_ID.fullmatch(text):
        raise _not_a_file(field, text)
    return text


def decode(
    files: Mapping[str, bytes], limits: LimitsConfig, decoders: DecoderPool
) -> dict[str, Decoded]:
    """Decode untrusted pictures and write them anew; slow, so not for the event loop.

    Pictures are scaled down to the largest side of a result: more detail has no use, and a full
    queue of large pictures would fill the store.

    Raises:
        ImageError: For a picture that cannot be used.
    """
    decoded = {}
    for name, data in files.items():
        image = decoders.decode(data, name, limits.max_pixels, limits.max_side)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        decoded[name] = Decoded(buffer.getvalue(), image.size)
    return decoded


def choose_seed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The controls with a seed: the one asked for or a random one."""
    seed = values["seed"]
    return {**values, "seed": secrets.randbelow(2**32) if seed is None else seed}


def batch_key(sizes: Mapping[str, tuple[int, int]], params: Mapping[str, Any]) -> str:
    """Equal for jobs that may run in one batch.

    Args:
        sizes: Width and height of each picture by name.
        params: Every control.
    """
    controls = {name: value for name, value in params.items() if name != "seed"}
    return digest_of([sizes["sketch"], sorted(sizes), controls])


def check_other_side(sketch: tuple[int, int], values: Mapping[str, Any], max_side: int) -> None:
    """A side that is given alone sets the other by the sketch's shape.

    Raises:
        ControlError: If that is too large.
    """
    width, height = sketch
    for name, ratio in (("height", width / height), ("width", height / width)):
        given, other = values[name], "width" if name == "height" else "height"
        if given is not None and values[other] is None and given * ratio > max_side:
            raise ControlError(
                name,
                f"{given} makes the {other} of this sketch {given * ratio:.0f}; at most {max_side} "
                "is allowed",
            )


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _read_params(text: Any) -> dict[str, Any]:
    if text is None or text == "":
        return {}
    try:
        values = json.loads(text, parse_constant=lambda _: math.nan)
    except (TypeError, ValueError, RecursionError):
        raise invalid(PARAMS, "invalid_json", "not a JSON object") from None
    if not isinstance(values, dict):
        raise invalid(PARAMS, "invalid_json", "not a JSON object")
    return values


def _not_a_file(name: str, text: str) -> Problem:
    if "://" in text[:32] or text.startswith("data:"):
        return invalid(
            name, "urls_not_allowed", "addresses are never fetched: send the picture itself"
        )
    return invalid(name, "not_a_file", "send the picture as a file, not as text")


def invalid(field: str, code: str, detail: str) -> Problem:
    """A field that cannot be used."""
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, code, detail, field)
