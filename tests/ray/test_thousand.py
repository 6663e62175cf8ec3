"""A thousand files, fifty of them broken in every way: counted, named, and the same every time."""

from __future__ import annotations

import os
import random
import shutil
import struct
import threading
import zlib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from nurie.config.data import DataConfig, PicturesSource
from nurie.data.manifest import Manifest
from nurie_pipelines.data.build import build_dataset

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
GOOD = 950


def picture(seed: int, width: int = 96, height: int = 80) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def bomb() -> bytes:
    """A PNG of 30 000 x 30 000 pixels in a few hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


def broken(number: int) -> tuple[str, bytes, str]:
    """Ending, content and reason of one broken file."""
    whole = png(picture(10_000 + number))
    kinds = [
        (".png", b"", "empty_image"),
        (".jpg", b"not a picture", "unsupported_image"),
        (".png", whole[: len(whole) // 2], "corrupt_image"),
        (".webp", b"GIF89a" + bytes(100), "unsupported_image"),
        (".png", bomb(), "too_many_pixels"),
        (".png", png(picture(number, 20, 20)), "too_small"),
        (".png", png(picture(number, 500, 80)), "too_long"),
        (".png", png(picture(number, 400, 8)), "bad_dimensions"),
        (".png", png(np.full((80, 80, 3), 200, np.uint8)), "bad_lines"),
    ]
    return kinds[number % len(kinds)]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Counter]:
    folder = tmp_path_factory.mktemp("thousand")
    for number in range(GOOD):
        place = folder / f"{number % 7}"
        place.mkdir(exist_ok=True)
        (place / f"{number}.png").write_bytes(png(picture(number)))
    reasons: Counter = Counter()
    for number in range(48):
        ending, content, reason = broken(number)
        (folder / f"broken-{number}{ending}").write_bytes(content)
        reasons[reason] += 1
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    outside.write_bytes(png(picture(1)))
    (folder / "link.png").symlink_to(outside)
    with open(os.fsencode(folder) + b"/caf\xe9.png", "wb") as file:
        file.write(png(picture(2)))
    return folder, reasons + Counter(["link", "bad_name"])


def build(collection: Path, output: Path) -> Manifest:
    config = DataConfig(
        name="thousand",
        source=PicturesSource(kind="folder", path=str(collection), near_duplicate_distance=None),
        output=output,
        image_size=64,
        line_styles=("xdog",),
        rows_per_shard=50,
    )
    return build_dataset(config)


def digests(manifest: Manifest) -> dict[str, str]:
    return {shard.file: shard.sha256 for shard in manifest.shards}


@pytest.mark.fault
def test_counts_reasons_and_digests(ray_session, collection, tmp_path) -> None:
    folder, reasons = collection
    first = build(folder, tmp_path / "first")
    assert sum(first.counts.values()) == GOOD
    assert first.quarantine == reasons
    assert sum(reasons.values()) == 50
    shutil.rmtree(tmp_path / "first")
    stop = threading.Event()
    killed: list[int] = []
    killer = threading.Thread(target=kill_workers, args=(stop, killed))
    killer.start()
    try:
        second = build(folder, tmp_path / "second")
    finally:
        stop.set()
        killer.join()
    assert killed
    assert digests(second) == digests(first)
    assert second == first


def kill_workers(stop: threading.Event, killed: list[int]) -> None:
    """Kills eight of our Ray workers that are at work, one every second or so.

    A busy machine needs longer than that to start a worker: killing for ever would leave none.
    """
    choose = random.Random(0)
    while len(killed) < 8 and not stop.wait(1.0):
        busy = [
            process
            for process in psutil.Process().children(recursive=True)
            if process.name().startswith("ray::Map") or "render_shard" in process.name()
        ]
        if busy:
            victim = choose.choice(busy)
            victim.kill()
            killed.append(victim.pid)
