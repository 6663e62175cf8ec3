"""A colorization as JSON: controls as values, pictures as data URLs or ids of uploads."""

from __future__ import annotations

import asyncio
import binascii
import re
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request

from nurie.inference.controls import Control, ControlError
from nurie_serve.errors import Problem
from nurie_serve.form import PARAMS, check_upload_id, empty_body, invalid, merge_controls, missing
from nurie_serve.schema import IMAGE_INPUTS, REQUIRED_INPUTS
from nurie_serve.strict_json import RepeatedName, parse_object

MEDIA_TYPE = "application/json"
_MAX_TEXT = 1000
_DATA = "data:"
_HEAD = re.compile(r"data:image/(png|jpeg|webp);base64", re.IGNORECASE)


async def read_body(request: Request) -> dict[str, Any]:
    """Parse the body.

    Raises:
        Problem: 400 if it is empty or no JSON object, 422 if a name stands twice.
    """
    data = await request.body()
    if not data:
        raise empty_body()
    try:
        return await asyncio.to_thread(parse_object, data)
    except RepeatedName as error:
        raise invalid(error.name, "duplicate_field", "given more than once") from None
    except ValueError as error:
        raise Problem(HTTPStatus.BAD_REQUEST, "invalid_json", f"the body {error}") from None


def read_values(
    body: Mapping[str, Any], controls: tuple[Control, ...], extra: Collection[str]
) -> dict[str, Any]:
    """Merge the ``params`` object and the single values into checked controls.

    Args:
        body: The body.
        controls: The controls that exist.
        extra: Names of values that are something else.

    Raises:
        Problem: 422 if ``params`` is no object, or a control is given twice.
        ControlError: For an unknown control or a value outside its range.
    """
    params = body.get(PARAMS, {})
    if not isinstance(params, dict):
        raise invalid(PARAMS, "invalid_json", "is not a JSON object")
    known = {control.name: control for control in controls}
    params = {name: plain(known.get(name), value) for name, value in params.items()}
    return merge_controls(params, body.items(), plain, controls, extra)


def read_pictures(body: Mapping[str, Any]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Take the pictures out of the body.

    Returns:
        Files by input name, and uploads (their ids) by input name.

    Raises:
        Problem: 400 for broken base64, 415 for another type of data, 422 for a required picture
            that is missing or other text (such as a URL) in the place of one.
    """
    files: dict[str, bytes] = {}
    uploads: dict[str, str] = {}
    for name in IMAGE_INPUTS:
        if name not in body:
            if name in REQUIRED_INPUTS:
                raise missing(name)
            continue
        value = body[name]
        if not isinstance(value, str):
            raise invalid(name, "not_a_file", "send a data URL or the id of an upload")
        if value[: len(_DATA)].lower() == _DATA:
            files[name] = _decode(name, value)
        else:
            uploads[name] = check_upload_id(name, value)
    return files, uploads


def plain(control: Control | None, value: Any) -> Any:
    """A value that an error may show.

    Args:
        control: Its control, if there is one of its name.
        value: The value.

    Raises:
        ControlError: For an object, a list or a long text.
    """
    long = isinstance(value, dict | list) or (isinstance(value, str) and len(value) > _MAX_TEXT)
    if control is not None and long:
        raise ControlError(control.name, f"this is not {control.allowed}")
    return value


def _decode(name: str, url: str) -> bytes:
    """The bytes of a data URL; what they are, their content alone decides later."""
    head, _, text = url.partition(",")
    if not _HEAD.fullmatch(head):
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_image",
            "send data:image/png;base64,... (or jpeg, or webp)",
            name,
        )
    try:
        if len(text) % 4 or text.count("=") > 2:  # Python takes any number of these at the end
            raise ValueError
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise Problem(
            HTTPStatus.BAD_REQUEST, "invalid_base64", "the data URL is not base64", name
        ) from None
