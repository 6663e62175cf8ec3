"""The files a result can be written as: flat pictures and files with layers."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nurie.inference.layers import LayeredPicture
from nurie.inference.openraster import (
    merged_png,
    read_openraster,
    without_texts,
    write_openraster,
)
from nurie.inference.png import write_png
from nurie.inference.recipe import Recipe, read_recipe

Writer = Callable[[LayeredPicture, bytes | None], bytes]
_ALIASES = {"jpg": "jpeg"}
_MAX_WEBP_SIDE = 16_383


class FormatError(ValueError):
    """A format that does not exist, or that cannot hold the picture."""


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Args:
        name: Also the ending of file names.
        media_type: For HTTP.
        layered: True if line, colour, background and mask are layers.
        write: Picture and XMP metadata (None: without) to the file.
    """

    name: str
    media_type: str
    layered: bool
    write: Writer


def find_format(name: str) -> Format:
    """The format of this name; ``jpg`` is ``jpeg``.

    Raises:
        FormatError: Listing those there are.
    """
    known = FORMATS.get(_ALIASES.get(name.lower(), name.lower()))
    if known is None:
        raise FormatError(f"{name!r} is no format of results; use {', '.join(FORMATS)}")
    return known


def format_of(file: Path) -> Format:
    """The format that the ending of a file's name asks for.

    Raises:
        FormatError: Listing the endings there are.
    """
    try:
        return find_format(file.suffix[1:])
    except FormatError:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise FormatError(f"{file}: the name must end in one of {endings}") from None


def encode(picture: LayeredPicture, file_format: Format, recipe: Recipe | None) -> bytes:
    """Write a result; equal pictures and recipes give equal files.

    Nothing of the input files' metadata is in it: a picture here is pixels only.

    Args:
        picture: The result.
        file_format: The kind of file.
        recipe: Written as metadata (None: the file holds none).

    Raises:
        FormatError: If the format cannot hold so large a picture.
    """
    if file_format.name == "webp" and max(picture.colours.size) > _MAX_WEBP_SIDE:
        raise FormatError(f"webp holds at most {_MAX_WEBP_SIDE} pixels a side; use png")
    return file_format.write(picture, None if recipe is None else recipe.to_xmp())


def convert(openraster: bytes, file_format: Format, metadata: bool) -> bytes:
    """Make another file of an OpenRaster file that :func:`encode` wrote.

    Args:
        openraster: The file; not one of strangers.
        file_format: The kind of file wanted.
        metadata: Whether the settings are in it.

    Raises:
        FormatError: If the format cannot hold so large a picture.
    """
    if metadata and file_format.name == "ora":
        return openraster
    if file_format.name == "png":
        flat = merged_png(openraster)
        return flat if metadata else without_texts(flat)
    recipe = read_recipe(openraster) if metadata else None
    return encode(read_openraster(openraster), file_format, recipe)


def _png(picture: LayeredPicture, xmp: bytes | None) -> bytes:
    return write_png(picture.flatten(), xmp)


def _webp(picture: LayeredPicture, xmp: bytes | None) -> bytes:
    buffer = io.BytesIO()
    picture.flatten().save(buffer, "WEBP", lossless=True, xmp=xmp or b"")
    return buffer.getvalue()


def _jpeg(picture: LayeredPicture, xmp: bytes | None) -> bytes:
    buffer = io.BytesIO()
    # Coloured lines fray where colour has half the resolution.
    picture.flatten().save(buffer, "JPEG", quality=95, subsampling=0, xmp=xmp or b"")
    return buffer.getvalue()


def _psd(picture: LayeredPicture, xmp: bytes | None) -> bytes:
    from nurie.inference.psd import write_psd

    return write_psd(picture, xmp)


FORMATS: dict[str, Format] = {
    known.name: known
    for known in (
        Format("png", "image/png", False, _png),
        Format("webp", "image/webp", False, _webp),
        Format("jpeg", "image/jpeg", False, _jpeg),
        Format("psd", "image/vnd.adobe.photoshop", True, _psd),
        Format("ora", "image/openraster", True, write_openraster),
    )
}
