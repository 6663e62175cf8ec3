"""OpenRaster (``.ora``) files, which Krita, GIMP and MyPaint open: a zip of PNGs and a list."""

from __future__ import annotations

import io
import struct
import zipfile
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from PIL import Image

from nurie.inference.layers import COLOUR, LINE, MASK, Layer, LayeredPicture
from nurie.inference.png import write_png

_THUMBNAIL_SIDE = 256
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Date of all entries: the same picture is the same file."""


def write_openraster(picture: LayeredPicture, xmp: bytes | None = None) -> bytes:
    """Write a picture with its layers.

    Args:
        picture: The picture.
        xmp: Metadata, kept in the merged picture.
    """
    merged = picture.flatten()
    small = merged.copy()
    small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    layers = picture.layers()
    entries = {
        # The format demands that this one comes first.
        "mimetype": b"image/openraster",
        "stack.xml": _stack(layers, merged.size),
        **{f"data/{layer.name}.png": write_png(layer.image) for layer in layers},
        "mergedimage.png": write_png(merged, xmp),
        "Thumbnails/thumbnail.png": write_png(small),
    }
    buffer = io.BytesIO()
    # PNGs are compressed already; stored, the merged picture's metadata stays readable.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
    return buffer.getvalue()


def read_openraster(data: bytes) -> LayeredPicture:
    """Read a file that :func:`write_openraster` wrote; not for files of strangers."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        stack = ElementTree.fromstring(archive.read("stack.xml"))
        images = {
            name: Image.open(io.BytesIO(archive.read(f"data/{name}.png")))
            for name in (COLOUR, LINE, MASK)
        }
        (line,) = (layer for layer in stack.iter("layer") if layer.get("name") == LINE)
        shown = line.get("visibility") == "visible"
        return LayeredPicture(
            images[COLOUR].convert("RGB"),
            images[LINE].convert("L"),
            images[MASK].convert("L"),
            float(line.attrib["opacity"]) if shown else 0.0,
        )


def merged_png(data: bytes) -> bytes:
    """The flat picture inside a file that :func:`write_openraster` wrote, as a PNG file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read("mergedimage.png")


def without_texts(data: bytes) -> bytes:
    """The same PNG file without its metadata; not for files of strangers."""
    kept, place = [data[:8]], 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 12 + length
        if data[place + 4 : place + 8] != b"iTXt":
            kept.append(data[place:end])
        place = end
    return b"".join(kept)


def _stack(layers: tuple[Layer, ...], size: tuple[int, int]) -> bytes:
    lines = [
        f'<layer name={quoteattr(layer.name)} src="data/{layer.name}.png" x="0" y="0" '
        f'opacity="{layer.opacity!r}" visibility="{"visible" if layer.visible else "hidden"}" '
        f'composite-op="svg:{"multiply" if layer.blend == "multiply" else "src-over"}"/>'
        for layer in layers
    ]
    width, height = size
    return "\n".join(
        [
            "<?xml version='1.0' encoding='UTF-8'?>",
            f'<image version="0.0.3" w="{width}" h="{height}" xres="72" yres="72">',
            "<stack>",
            *lines,
            "</stack>",
            "</image>",
        ]
    ).encode()
