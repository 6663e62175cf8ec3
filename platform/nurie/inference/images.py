"""Decoding of untrusted pictures: what may come in, and in which form it leaves.

Only PNG, JPEG and WebP are accepted, judged by content and never by name or declared type. The
size is read from the header and checked before any pixel is decoded, because a few hundred
kilobytes of PNG can unfold into gigabytes.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image

FORMATS = ("PNG", "JPEG", "WEBP")
MIN_SIDE = 16
MAX_ASPECT_RATIO = 20.0
DEFAULT_MAX_PIXELS = 16_777_216

_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}
# What Pillow raises for damaged files: its decoders share no base class of their own.
_DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError)
_DECODE_ERRORS += (OverflowError, struct.error, zlib.error)


class ImageError(ValueError):
    """A picture that cannot be used.

    Attributes:
        field: Name of the input the picture was given as, e.g. ``sketch``.
        code: One of ``empty_image``, ``unsupported_image``, ``corrupt_image``,
            ``too_many_pixels``, ``bad_dimensions``.
        message: What is wrong and what is allowed, for the user.
    """

    def __init__(self, field: str, code: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.code = code
        self.message = message


def decode_image(data: bytes, field: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decode one untrusted picture.

    Turned upright (EXIF); grey, 16-bit, CMYK and palette pictures converted; of an animation
    the first frame; all metadata (EXIF, GPS, colour profile, texts) dropped.

    Args:
        data: The file.
        field: Name of the input, for error messages.
        max_pixels: Largest width times height.

    Returns:
        A loaded picture of mode ``RGBA`` if it has transparency, else ``RGB``.

    Raises:
        ImageError: If the file is empty, of another format, damaged, too large or oddly shaped.
    """
    if not data:
        raise ImageError(field, "empty_image", "the file is empty")
    image = _open(data, field, max_pixels)
    _check_size(image.size, field, max_pixels)
    try:
        image.load()
        turns = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1), ())
        image = _normalise_mode(image)
    except _DECODE_ERRORS as error:
        raise _corrupt(field) from error
    for turn in turns:
        image = image.transpose(turn)
    image.info.clear()
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Lay a picture over white: RGB of the same size."""
    if image.mode == "RGB":
        return image
    over = image.convert("RGBA")
    paper = Image.new("RGBA", over.size, "white")
    return Image.alpha_composite(paper, over).convert("RGB")


def _open(data: bytes, field: str, max_pixels: int) -> Image.Image:
    """Read the header only."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            field, "too_many_pixels", f"at most {max_pixels} pixels are allowed"
        ) from error
    except _DECODE_ERRORS as error:
        if data.startswith(_SIGNATURES) or data[8:12] == b"WEBP":
            raise _corrupt(field) from error
        raise ImageError(
            field, "unsupported_image", "the file is not a PNG, JPEG or WebP picture"
        ) from error


def _check_size(size: tuple[int, int], field: str, max_pixels: int) -> None:
    width, height = size
    short, long = sorted(size)
    if short < MIN_SIDE or long > MAX_ASPECT_RATIO * short:
        raise ImageError(
            field,
            "bad_dimensions",
            f"the picture is {width} x {height} pixels; each side must have at least {MIN_SIDE} "
            f"pixels and the longer at most {MAX_ASPECT_RATIO:g} times the shorter",
        )
    if width * height > max_pixels:
        raise ImageError(
            field,
            "too_many_pixels",
            f"the picture has {width} x {height} = {width * height} pixels; at most {max_pixels} "
            "are allowed",
        )


def _normalise_mode(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey to 255 instead of scaling it.
        grey = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("RGB")


def _corrupt(field: str) -> ImageError:
    return ImageError(field, "corrupt_image", "the picture is damaged or cut off")
