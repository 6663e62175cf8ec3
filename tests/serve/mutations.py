"""Seeded damage to pictures: bytes, regions, and chunks whose checksums are right again."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, PngImagePlugin

from tests.unit.test_images import NOISE, encode

Damage = Callable[[bytearray, np.random.Generator], bytes]


def mutated(count: int, seed: int = 0) -> Iterator[bytes]:
    """Damaged pictures; the same seed gives the same ones."""
    rng = np.random.default_rng(seed)
    sources = _sources()
    for _ in range(count):
        data = bytearray(sources[rng.integers(len(sources))])
        for _ in range(rng.integers(1, 4)):
            data = bytearray(DAMAGES[rng.integers(len(DAMAGES))](data, rng))
        yield bytes(data)


def _sources() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "x" * 500, zip=True)
    texts.add_itxt("XML:com.adobe.xmp", "<x/>")
    frames = [NOISE.rotate(90), NOISE.rotate(180)]
    return [
        encode(NOISE, pnginfo=texts, exif=exif),
        encode(NOISE.convert("RGBA")),
        encode(NOISE.quantize(32), transparency=3),
        encode(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16)),
        encode(NOISE, save_all=True, append_images=frames),
        encode(NOISE, "JPEG", exif=exif, comment=b"x" * 100),
        encode(NOISE, "JPEG", progressive=True),
        encode(NOISE.convert("CMYK"), "JPEG"),
        encode(NOISE, "WEBP", exif=exif),
        encode(NOISE.convert("RGBA"), "WEBP", lossless=True),
        encode(NOISE, "WEBP", save_all=True, append_images=frames),
    ]


def _flip(data: bytearray, rng: np.random.Generator) -> bytes:
    for place in rng.integers(0, max(1, len(data)), rng.integers(1, 9)):
        if data:
            data[place] = rng.integers(256)
    return bytes(data)


def _extreme(data: bytearray, rng: np.random.Generator) -> bytes:
    """Numbers at the edges of their types, where lengths and sizes may be."""
    place = int(rng.integers(0, max(1, min(len(data), 200))))
    number = rng.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])
    data[place : place + 4] = struct.pack(rng.choice([">I", "<I"]), int(number))
    return bytes(data)


def _cut(data: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(data[: rng.integers(0, len(data) + 1)])


def _region(data: bytearray, rng: np.random.Generator) -> bytes:
    """Drop, repeat or move a part."""
    start, end, to = sorted(int(n) for n in rng.integers(0, len(data) + 1, 3))
    part = data[start:end]
    kinds = (
        lambda: data[:start] + data[end:],
        lambda: data[:end] + part * int(rng.integers(1, 20)) + data[end:],
        lambda: data[:start] + data[end:to] + part + data[to:],
    )
    return bytes(kinds[rng.integers(len(kinds))]())


def _chunk(data: bytearray, rng: np.random.Generator) -> bytes:
    """Damage inside a chunk of a PNG, with a right checksum, so that it gets further."""
    if data[:4] != b"\x89PNG":
        return _flip(data, rng)
    chunks, place = [], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((bytes(data[place + 4 : place + 8]), data[place + 8 : place + 8 + length]))
        place += 12 + length
    if chunks:
        number = rng.integers(len(chunks))
        kind, body = chunks[number]
        inner = (_flip, _extreme, _cut, _region)[rng.integers(4)]
        chunks[number] = (kind, bytearray(inner(bytearray(body), rng)))
        if rng.integers(4) == 0:
            chunks.insert(int(rng.integers(len(chunks) + 1)), chunks[number])
    out = bytearray(data[:8])
    for kind, body in chunks:
        out += struct.pack(">I", len(body)) + kind + body
        out += struct.pack(">I", zlib.crc32(kind + body))
    return bytes(out)


DAMAGES: tuple[Damage, ...] = (_flip, _extreme, _cut, _region, _chunk, _chunk)
