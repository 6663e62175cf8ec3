"""PNG files of pictures with metadata, written fast; arrays take ``nurie.data.png``."""

from __future__ import annotations

import io
import zlib

from PIL import Image
from PIL.PngImagePlugin import PngInfo


def write_png(image: Image.Image, xmp: bytes | None = None) -> bytes:
    """A PNG file, with metadata if given.

    Drawings have runs of equal pixels: looking for nothing else takes a third of the time of
    Pillow's usual search, for files that are 5 % larger at most of those that were tried.
    """
    texts = PngInfo()
    if xmp is not None:
        texts.add_itxt("XML:com.adobe.xmp", xmp.decode())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE, pnginfo=texts)
    return buffer.getvalue()
