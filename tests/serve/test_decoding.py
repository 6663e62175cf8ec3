"""Uploaded pictures are decoded in a process that may crash, hang or grow at nobody's cost."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageCms

from nurie.inference.images import ImageError, decode_image
from nurie_serve import decode_child, decoding
from nurie_serve.decoding import DecoderPool
from tests.unit.test_images import NOISE, REFUSED, encode, picture

MAX_PIXELS, MAX_SIDE = 1_000_000, 512


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(1, MAX_PIXELS)
    yield pool
    pool.close()


def decode(pool: DecoderPool, data: bytes) -> Image.Image:
    return pool.decode(data, "sketch", MAX_PIXELS, MAX_SIDE)


def process(pool: DecoderPool) -> subprocess.Popen:
    """The idle child of a pool of one."""
    child = pool._children.queue[0]
    assert child is not None
    return child._process


def with_everything(image_format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return encode(NOISE, image_format, exif=exif, icc_profile=profile)


GOOD = {
    "PNG": encode(NOISE),
    "PNG, RGBA": encode(NOISE.convert("RGBA")),
    "PNG, grey and alpha": encode(NOISE.convert("LA")),
    "PNG, palette": encode(NOISE.quantize(16)),
    "PNG, one bit": encode(NOISE.convert("1")),
    "PNG, 16 bit": encode(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16)),
    "APNG": encode(picture(), save_all=True, append_images=[NOISE.resize((40, 30))]),
    "JPEG": encode(NOISE, "JPEG"),
    "JPEG, progressive": encode(NOISE, "JPEG", progressive=True),
    "JPEG, CMYK": encode(NOISE.convert("CMYK"), "JPEG"),
    "JPEG, grey": encode(NOISE.convert("L"), "JPEG"),
    "WebP": encode(NOISE, "WEBP"),
    "WebP, RGBA": encode(NOISE.convert("RGBA"), "WEBP", lossless=True),
    "WebP, animated": encode(picture(), "WEBP", save_all=True, append_images=[picture()]),
    **{f"{name}, turned, with profile": with_everything(name) for name in ("PNG", "JPEG", "WEBP")},
    "large": encode(picture(900, 700)),
}


@pytest.mark.parametrize("name", GOOD)
def test_the_same_picture_as_without_a_child(pool: DecoderPool, name: str) -> None:
    expected = decode_image(GOOD[name], "sketch", MAX_PIXELS)
    expected.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    found = decode(pool, GOOD[name])
    assert (found.mode, found.size) == (expected.mode, expected.size)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", REFUSED)
def test_the_same_refusal_as_without_a_child(pool: DecoderPool, name: str) -> None:
    data, code = REFUSED[name]
    with pytest.raises(ImageError) as expected:
        decode_image(data, "sketch", MAX_PIXELS)
    with pytest.raises(ImageError) as caught:
        decode(pool, data)
    assert (caught.value.code, str(caught.value)) == (code, str(expected.value))


def test_children_stay_warm_and_are_replaced_in_time(monkeypatch) -> None:
    monkeypatch.setattr(decoding, "PICTURES_PER_CHILD", 2)
    pool = DecoderPool(1, MAX_PIXELS)
    decode(pool, GOOD["PNG"])
    first = process(pool)
    decode(pool, GOOD["PNG"])
    assert first.poll() is not None
    decode(pool, GOOD["PNG"])
    assert process(pool).pid != first.pid
    pool.close()


@pytest.mark.parametrize("fault", ["killed", "hangs"])
def test_a_crash_costs_one_picture(monkeypatch, fault: str) -> None:
    pool = DecoderPool(1, MAX_PIXELS)
    decode(pool, GOOD["PNG"])
    child = process(pool)
    # Stopped, it takes the picture and does not answer.
    os.kill(child.pid, signal.SIGSTOP)
    if fault == "killed":
        threading.Timer(0.3, child.kill).start()
    else:
        monkeypatch.setattr(decoding, "WALL_SECONDS", 0.3)
    with pytest.raises(ImageError, match="crashed or took too long") as caught:
        decode(pool, GOOD["PNG"])
    assert caught.value.code == "undecodable_image"
    assert child.poll() == -signal.SIGKILL
    monkeypatch.undo()
    assert decode(pool, GOOD["PNG"]).size == NOISE.size
    pool.close()


def test_a_child_that_died_while_idle_costs_nothing() -> None:
    pool = DecoderPool(1, MAX_PIXELS)
    decode(pool, GOOD["PNG"])
    process(pool).kill()
    process(pool).wait()
    assert decode(pool, GOOD["PNG"]).size == NOISE.size
    pool.close()


def test_memory_is_limited(pool: DecoderPool) -> None:
    # As RGB it takes 576 MB, more than the child has.
    huge = encode(Image.new("L", (12_000, 12_000)), compress_level=1)
    with pytest.raises(ImageError) as caught:
        pool.decode(huge, "sketch", 200_000_000, MAX_SIDE)
    assert caught.value.code == "undecodable_image"
    assert decode(pool, GOOD["PNG"]).size == NOISE.size


def run_child(code: str) -> subprocess.CompletedProcess:
    start = "import nurie_serve.decode_child as child\n"
    command = [sys.executable, "-c", start + code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_processor_time_is_limited() -> None:
    done = run_child(
        "child.CPU_SECONDS = 1\n"
        "child.decode_image = lambda *_: [None for _ in iter(int, 1)]\n"
        "child.answer(b'', 'sketch', 1, 1)\n"
    )
    assert done.returncode == -signal.SIGXCPU


@pytest.mark.parametrize(
    ("deed", "error"),
    [
        ("open('/etc/passwd')", "Too many open files"),
        ("import socket; socket.socket()", "Too many open files"),
        ("import os; os.pipe()", "Too many open files"),
        ("bytearray(2**30)", "MemoryError"),
    ],
)
def test_rights_are_given_up(deed: str, error: str) -> None:
    done = run_child(f"import socket, traceback\nchild.give_up_rights(2**29)\n{deed}\n")
    assert done.returncode == 1
    assert error in done.stderr


def test_memory_that_runs_out_is_an_answer(monkeypatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decode_child, "decode_image", exhausted)
    monkeypatch.setattr(decode_child.resource, "setrlimit", lambda *_: None)
    reply, pixels = decode_child.answer(b"", "sketch", 1, 1)
    assert (reply["code"], pixels) == ("undecodable_image", b"")


def test_what_a_child_answers_is_not_trusted(monkeypatch) -> None:
    class Liar:
        replies: list[bytes]

        def send_bytes(self, _: bytes) -> None: ...

        def poll(self, _: float) -> bool:
            return True

        def recv_bytes(self, most: int) -> bytes:
            reply = self.replies.pop(0)
            if len(reply) > most:
                raise OSError("bad message length")
            return reply

    pool = DecoderPool(1, MAX_PIXELS)
    decode(pool, GOOD["PNG"])
    child = pool._children.queue[0]
    assert child is not None
    pipe = child._pipe
    for replies in (
        [b"no JSON", b""],
        [b"[1]", b""],
        [b'{"mode": "P", "size": [2, 2]}', b"1234"],
        [b'{"mode": "RGB", "size": [2, 2]}', b"short"],
        [b'{"mode": "RGB", "size": [0, 2]}', b""],
        [b'{"mode": "RGB", "size": [2, 100000]}', b""],
        [b'{"mode": "RGB", "size": "2"}', b""],
        [b"{}" * 4096, b""],
        [b'{"mode": "RGB", "size": [2, 2]}', bytes(4 * MAX_SIDE**2 + 1)],
    ):
        liar = Liar()
        liar.replies = list(replies)
        monkeypatch.setattr(child, "_pipe", liar)
        assert child.decode(b"", "sketch", MAX_PIXELS, MAX_SIDE) is None, replies
    monkeypatch.setattr(child, "_pipe", pipe)
    pool.close()


def test_many_threads_share_few_children() -> None:
    pool = DecoderPool(2, MAX_PIXELS)
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(decode(pool, GOOD["PNG"]).tobytes()))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [NOISE.tobytes()] * 16
    assert Image.open(io.BytesIO(GOOD["PNG"])).size == NOISE.size
    assert pool._children.qsize() == 2
    pool.close()
