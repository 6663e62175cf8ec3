"""Reading a multipart form: pictures, controls, and what they make together."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import Request
from starlette.datastructures import FormData, UploadFile

from nurie.config.serve import LimitsConfig
from nurie.inference.controls import Control, ControlError, parse_controls, unknown_control
from nurie_serve.decoding import DecoderPool
from nurie_serve.errors import Problem
from nurie_serve.jobs.pixels import pack
from nurie_serve.schema import IMAGE_INPUTS, REQUIRED_INPUTS
from nurie_serve.strict_json import RepeatedName, parse_object

FORM = "multipart/form-data"
MAX_FIELDS = 64
MAX_FILES = len(IMAGE_INPUTS) + 4
PARAMS = "params"
UPLOAD_ID = re.compile(r"upl_[0-9a-f]{34}")


@dataclass(frozen=True)
class Decoded:
    """A checked picture.

    Args:
        packed: Its pixels, see ``nurie_serve.jobs.pixels``.
        size: Width and height in pixels.
    """

    packed: bytes
    size: tuple[int, int]


async def read_form(request: Request, max_files: int = MAX_FILES, accepted: str = FORM) -> FormData:
    """Parse the body.

    Args:
        request: The request.
        max_files: Most files.
        accepted: What an error says that may be sent.

    Raises:
        Problem: 400 for an empty or broken body, 415 for anything but a multipart form.
    """
    kind = media_type(request)
    if not kind and request.headers.get("content-length", "0") == "0":
        raise empty_body()
    if kind != FORM:
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            f"send {accepted}, not {kind or 'a body without Content-Type'}",
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
    params = _read_params(form.get(PARAMS))
    return merge_controls(params, form.multi_items(), read_text, controls, extra)


def merge_controls(
    params: Mapping[str, Any],
    fields: Iterable[tuple[str, Any]],
    read: Callable[[Control, Any], Any],
    controls: tuple[Control, ...],
    extra: Collection[str],
) -> dict[str, Any]:
    """Merge controls that came in one object and those that came alone; check them.

    Args:
        params: Those in one object.
        fields: All fields of the request, pictures too.
        read: Makes a control's value of a field.
        controls: The controls that exist.
        extra: Names of fields that are something else.

    Raises:
        Problem: 422 for a control given twice.
        ControlError: For an unknown control or a value outside its range.
    """
    known = {control.name: control for control in controls}
    values = dict(params)
    for name, value in fields:
        if name in (PARAMS, *IMAGE_INPUTS, *extra):
            continue
        if name not in known:
            raise unknown_control(name, [*IMAGE_INPUTS, PARAMS, *extra, *known])
        if name in values:
            raise invalid(name, "duplicate_field", "given more than once")
        values[name] = read(known[name], value)
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
        picture = await take_picture(form, name)
        if isinstance(picture, bytes):
            files[name] = picture
        elif picture is not None:
            uploads[name] = picture
        elif name in REQUIRED_INPUTS:
            raise missing(name)
    return files, uploads


async def take_picture(form: FormData, name: str) -> bytes | str | None:
    """One picture of a form: a file, the id of an upload, or None if there is none.

    Raises:
        Problem: 422 if it is given twice or is other text, such as a URL.
    """
    value = take_one(form, name)
    if isinstance(value, UploadFile):
        return await value.read()
    return None if value is None else check_upload_id(name, value)


def refuse_others(form: FormData, *names: str) -> None:
    """Check that a form has no other fields.

    Raises:
        Problem: 422 for the first that is not known.
    """
    for name in sorted(set(form) - set(names)):
        known = " and ".join(names)
        raise invalid(name, "unknown_field", f"not known here; send {known}")


def take_one(form: FormData, name: str) -> UploadFile | str | None:
    """The one field of this name; None if there is none.

    Raises:
        Problem: 422 if there are several.
    """
    given = form.getlist(name)
    if len(given) > 1:
        raise invalid(name, "duplicate_field", "given more than once")
    return given[0] if given else None


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
    """Decode untrusted pictures and pack their pixels; slow, so not for the event loop.

    Pictures are scaled down to the largest side of a result: more detail has no use, and a full
    queue of large pictures would fill the store.

    Raises:
        ImageError: For a picture that cannot be used.
    """
    decoded = {}
    for name, data in files.items():
        image = decoders.decode(data, name, limits.max_pixels, limits.max_side)
        decoded[name] = Decoded(pack(image), image.size)
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


def read_text(control: Control, value: UploadFile | str) -> Any:
    """A control's value of a field.

    Raises:
        ControlError: For a file, or a value outside the control's range.
    """
    if not isinstance(value, str):
        raise ControlError(control.name, f"a file is not {control.allowed}")
    return control.parse_text(value)


def _read_params(text: UploadFile | str | None) -> dict[str, Any]:
    if text is None or text == "":
        return {}
    if not isinstance(text, str):
        raise invalid(PARAMS, "invalid_json", "is a file, not a JSON object")
    try:
        return parse_object(text)
    except RepeatedName as error:
        raise invalid(error.name, "duplicate_field", "given more than once") from None
    except ValueError as error:
        raise invalid(PARAMS, "invalid_json", str(error)) from None


def _not_a_file(name: str, text: str) -> Problem:
    if "://" in text[:32] or text.startswith("data:"):
        return invalid(
            name, "urls_not_allowed", "addresses are never fetched: send the picture itself"
        )
    return invalid(
        name, "not_a_file", "send the picture as a file (in JSON a data URL) or the id of an upload"
    )


def media_type(request: Request) -> str:
    """Type of a request's body without its parameters; empty if it names none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def empty_body() -> Problem:
    """A request without a body."""
    return Problem(HTTPStatus.BAD_REQUEST, "empty_body", "the request has no body")


def missing(name: str) -> Problem:
    """A picture that must be there and is not."""
    return invalid(name, "missing_field", f"the {name} picture is missing")


def invalid(field: str, code: str, detail: str) -> Problem:
    """A field that cannot be used."""
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, code, detail, field)
