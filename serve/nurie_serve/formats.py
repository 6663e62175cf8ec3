"""Formats that a finished picture can be had in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from nurie_serve.errors import Problem


@dataclass(frozen=True)
class Finished:
    """A finished picture and what it was made of.

    Args:
        png: The picture.
        params: Every control with its value, the seed included.
        read_input: Returns the PNG of an input (``sketch``, ``mask``, ...), None if there is none.
    """

    png: bytes
    params: dict[str, Any]
    read_input: Callable[[str], bytes | None]


@dataclass(frozen=True)
class ImageFormat:
    """A file format.

    Args:
        media_type: For ``Content-Type``.
        suffix: Of a file name.
        encode: Makes the file.
    """

    media_type: str
    suffix: str
    encode: Callable[[Finished], bytes]


FORMATS = {"png": ImageFormat("image/png", "png", lambda finished: finished.png)}
"""By the name that a request uses."""


def find_format(name: str) -> ImageFormat:
    """The format of this name.

    Raises:
        Problem: 422 if there is none.
    """
    if name not in FORMATS:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "out_of_range",
            f"{name!r} is not one of {', '.join(FORMATS)}",
            "format",
        )
    return FORMATS[name]
