"""Untrusted pictures: every odd input either decodes to the right colours or is named."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from nurie.inference.images import ImageError, decode_image, to_rgb


def encode(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), (200, 10, 20))
    image.paste((10, 20, 200), (width // 2, 0, width, height))
    return image


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))

REFUSED = {
    "empty": (b"", "empty_image"),
    "text": (b"not a picture at all", "unsupported_image"),
    "html": (b"<!doctype html><img onerror=alert(1)>", "unsupported_image"),
    "svg": (
        b"<svg xmlns='http://www.w3.org/2000/svg' width='64' height='64'/>",
        "unsupported_image",
    ),
    "pdf": (b"%PDF-1.7\n1 0 obj", "unsupported_image"),
    "eps": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
        "unsupported_image",
    ),
    "gif": (encode(picture(), "GIF"), "unsupported_image"),
    "tiff": (encode(picture(), "TIFF"), "unsupported_image"),
    "bmp": (encode(picture(), "BMP"), "unsupported_image"),
    "truncated PNG": (encode(NOISE)[:3000], "corrupt_image"),
    "truncated JPEG": (encode(NOISE, "JPEG")[:900], "corrupt_image"),
    "truncated WebP": (encode(NOISE, "WEBP")[:300], "corrupt_image"),
    "signature only": (b"\x89PNG\r\n\x1a\n", "corrupt_image"),
    "169 megapixels": (png_header(13000, 13000), "too_many_pixels"),
    "400 megapixels": (png_header(20000, 20000), "too_many_pixels"),
    "one line": (png_header(100_000, 1), "bad_dimensions"),
    "one column": (png_header(1, 100_000), "bad_dimensions"),
    "tiny": (encode(picture(8, 8)), "bad_dimensions"),
    "strip": (encode(picture(3200, 32)), "bad_dimensions"),
    "zero": (png_header(0, 0), "corrupt_image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_field_and_code(name: str) -> None:
    data, code = REFUSED[name]
    with pytest.raises(ImageError) as caught:
        decode_image(data, "sketch", 1_000_000)
    assert (caught.value.field, caught.value.code) == ("sketch", code)


def test_bad_dimensions_name_the_limits() -> None:
    with pytest.raises(ImageError, match=r"at least 16.*at most 20 times"):
        decode_image(encode(picture(8, 8)), "sketch")


def test_text_bomb_is_refused() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("bomb", "a" * 20_000_000, zip=True)
    with pytest.raises(ImageError) as caught:
        decode_image(encode(picture(), pnginfo=texts), "sketch")
    assert caught.value.code == "corrupt_image"


def test_every_cut_and_flip_is_an_image_error_or_a_picture() -> None:
    rng = np.random.default_rng(1)
    for image_format in ("PNG", "JPEG", "WEBP"):
        data = encode(NOISE, image_format)
        for _ in range(60):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 4):
                damaged[place] = rng.integers(0, 256)
            cut = bytes(damaged[: rng.integers(1, len(data) + 1)])
            try:
                assert decode_image(cut, "sketch").mode in ("RGB", "RGBA")
            except ImageError:
                continue


def halves(image: Image.Image) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return image.getpixel((3, 5)), image.getpixel((image.width - 4, 5))


@pytest.mark.parametrize(
    "data",
    [
        encode(picture().convert("CMYK"), "JPEG", quality=95),
        encode(picture(), "WEBP", lossless=True),
        encode(picture().quantize(8)),
        encode(picture()) + b"PK\x03\x04 a zip file behind the picture",
        encode(
            picture(),
            "WEBP",
            save_all=True,
            append_images=[Image.new("RGB", (40, 30), "green")] * 3,
            lossless=True,
        ),
        encode(picture(), save_all=True, append_images=[Image.new("RGB", (40, 30))]),
    ],
    ids=["CMYK", "WebP", "palette", "polyglot", "animated WebP", "animated PNG"],
)
def test_keeps_colours(data: bytes) -> None:
    image = decode_image(data, "reference")
    assert image.mode == "RGB"
    left, right = halves(image)
    assert np.abs(np.subtract(left, (200, 10, 20))).max() < 12
    assert np.abs(np.subtract(right, (10, 20, 200))).max() < 12


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = np.full((20, 20), 32768, np.uint16)
    image = decode_image(encode(Image.fromarray(grey)), "sketch")
    assert image.getpixel((4, 4)) == (128, 128, 128)


def test_grey_becomes_rgb() -> None:
    assert (
        decode_image(encode(Image.new("L", (20, 20), 77)), "sketch").getpixel((0, 0)) == (77,) * 3
    )


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparency_is_kept_and_shown_over_white(mode: str) -> None:
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 10, 20))
    data = encode(clear.quantize(4) if mode == "P" else clear.convert(mode))
    image = decode_image(data, "sketch")
    assert image.mode == "RGBA"
    assert to_rgb(image).getpixel((15, 5)) == (255, 255, 255)
    assert to_rgb(image).getpixel((5, 5)) == (0, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_upright(orientation: int) -> None:
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[:8, :8] = 255
    upright[15:, :5] = (255, 0, 0)
    turned = np.asarray(upright)
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](turned)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(turned)), "WEBP", lossless=True, exif=exif)
    assert np.array_equal(np.asarray(decode_image(data, "sketch")), upright)


def test_metadata_is_dropped() -> None:
    exif = Image.Exif()
    exif[0x010E] = "home address"
    image = decode_image(encode(picture(), "JPEG", exif=exif), "sketch")
    assert not image.info
    assert b"home address" not in encode(image)
