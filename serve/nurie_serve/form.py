"""Reading a multipart form into a checked job."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from PIL import Image
from starlette.datastructures import FormData, UploadFile

from nurie.config.serve import LimitsConfig
from nurie.inference.controls import Control, ControlError, parse_controls, unknown_control
from nurie.inference.images import decode_image
from nurie_serve.errors import Problem
from nurie_serve.schema import IMAGE_INPUTS, REQUIRED_INPUTS, ColorizeJob

MAX_FIELDS = 64
PARAMS = "params"


async def read_form(request: Request) -> FormData:
    """Parse the body.

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
    return await request.form(max_files=len(IMAGE_INPUTS) + 4, max_fields=MAX_FIELDS)


def read_controls(form: FormData, controls: tuple[Control, ...]) -> dict[str, Any]:
    """Merge the ``params`` object and the single fields into checked controls.

    Raises:
        Problem: 422 for a broken ``params`` or a control given twice.
        ControlError: For an unknown control or a value outside its range.
    """
    known = {control.name: control for control in controls}
    values = _read_params(form.get(PARAMS))
    for name, value in form.multi_items():
        if name == PARAMS or name in IMAGE_INPUTS:
            continue
        if name not in known:
            raise unknown_control(name, [*IMAGE_INPUTS, PARAMS, *known])
        if name in values:
            raise _invalid(name, "duplicate_field", "given more than once")
        if not isinstance(value, str):
            raise ControlError(name, f"a file is not {known[name].allowed}")
        values[name] = known[name].parse_text(value)
    return parse_controls(values, controls)


async def read_images(form: FormData) -> dict[str, bytes]:
    """Take the files out of the form.

    Raises:
        Problem: 422 for a required picture that is missing, one given twice, or text (such as a
            URL) in the place of a file.
    """
    files: dict[str, bytes] = {}
    for name in IMAGE_INPUTS:
        given = form.getlist(name)
        if len(given) > 1:
            raise _invalid(name, "duplicate_field", "given more than once")
        if given:
            if not isinstance(given[0], UploadFile):
                raise _not_a_file(name, given[0])
            files[name] = await given[0].read()
        elif name in REQUIRED_INPUTS:
            raise _invalid(name, "missing_field", f"the {name} picture is missing")
    return files


def build_job(
    files: Mapping[str, bytes], values: dict[str, Any], limits: LimitsConfig
) -> ColorizeJob:
    """Decode the pictures and make the job; slow, so not for the event loop.

    Pictures are scaled down to the largest side of a result: more detail has no use, and a full
    queue of large pictures would not fit into memory.

    Raises:
        ImageError: For a picture that cannot be used.
    """
    images: dict[str, Image.Image] = {}
    for name, data in files.items():
        image = decode_image(data, name, limits.max_pixels)
        image.thumbnail((limits.max_side, limits.max_side), Image.Resampling.LANCZOS)
        images[name] = _mask(image) if name == "mask" else image
    controls = dict(values)
    _check_other_side(images["sketch"], controls, limits.max_side)
    seed = controls.pop("seed")
    return ColorizeJob(
        **images,
        seed=secrets.randbelow(2**32) if seed is None else seed,
        controls=controls,
        deadline=time.time() + limits.deadline_s,
    )


def _mask(image: Image.Image) -> Image.Image:
    """A grey mask; what is transparent is not foreground."""
    if image.mode != "RGBA":
        return image.convert("L")
    black = Image.new("RGBA", image.size, "black")
    return Image.alpha_composite(black, image).convert("L")


def _check_other_side(sketch: Image.Image, values: Mapping[str, Any], max_side: int) -> None:
    """A side that is given alone sets the other by the sketch's shape."""
    for name, ratio in (
        ("height", sketch.width / sketch.height),
        ("width", sketch.height / sketch.width),
    ):
        given, other = values[name], "width" if name == "height" else "height"
        if given is not None and values[other] is None and given * ratio > max_side:
            raise ControlError(
                name,
                f"{given} makes the {other} of this sketch {given * ratio:.0f}; at most {max_side} "
                "is allowed",
            )


def _read_params(text: Any) -> dict[str, Any]:
    if text is None or text == "":
        return {}
    try:
        values = json.loads(text, parse_constant=lambda _: math.nan)
    except (TypeError, ValueError, RecursionError):
        raise _invalid(PARAMS, "invalid_json", "not a JSON object") from None
    if not isinstance(values, dict):
        raise _invalid(PARAMS, "invalid_json", "not a JSON object")
    return values


def _not_a_file(name: str, text: str) -> Problem:
    if "://" in text[:32] or text.startswith("data:"):
        return _invalid(
            name, "urls_not_allowed", "addresses are never fetched: send the picture itself"
        )
    return _invalid(name, "not_a_file", "send the picture as a file, not as text")


def _invalid(field: str, code: str, detail: str) -> Problem:
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, code, detail, field)
