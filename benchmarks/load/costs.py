"""What serving itself costs: processor time, lost throughput, waiting."""

from __future__ import annotations

import asyncio
import io
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

import numpy as np
from PIL import Image

from benchmarks.load.crowd import Crowd
from benchmarks.load.endpoint import Files, drawings
from benchmarks.load.figures import Figure, p99
from benchmarks.load.server import Server
from nurie.inference.formats import convert, encode, find_format
from nurie.inference.images import decode_image
from nurie.inference.layers import LayeredPicture
from nurie.inference.recipe import Recipe
from nurie_serve.jobs.pixels import pack, unpack

SIDE = 592
"""Two pictures of noise with this side are 2 MiB of PNG."""
ROUNDS, REQUESTS = 3, 16
STEPS = 20
BATCH = 4
STEP_S, EACH_S = 0.01, 0.005
LOAD = 0.8
JOBS = 80


async def overhead(server: Server, crowd: Crowd, seconds: float) -> list[Figure]:
    """CPU time of a request beside a bare Ray Serve application that gets the same bodies."""
    server.ask("echo")
    files = noise()
    answer = await crowd.ask("/v1/colorize", files, num_inference_steps=1)
    assert answer.status == 200, answer
    path = f"/echo?answer={len(answer.data)}"
    ours: list[float] = []
    bare: list[float] = []
    idle = await _cpu(server, lambda: asyncio.sleep(5), 1) / 5
    for _ in range(ROUNDS):
        for found, where in ((bare, path), (ours, "/v1/colorize")):
            began = time.monotonic()

            async def one(where: str = where) -> None:
                answer = await crowd.ask(where, files, num_inference_steps=1)
                assert answer.status == 200, answer

            taken = await _cpu(server, one, REQUESTS)
            found.append((taken - idle * (time.monotonic() - began)) / REQUESTS * 1000)
    crowd.asked -= ROUNDS * REQUESTS  # of the echo
    both, echo = statistics.median(ours), statistics.median(bare)
    decoding, coding = await asyncio.to_thread(_picture_ms, files)
    pictures = decoding + coding
    note = f"bodies of {sum(map(len, files.values())) / 2**20:.1f} MiB, model that only sleeps"
    ratio = (both - pictures) / echo
    return [
        Figure("cost", "echo of Ray Serve", echo, "CPU ms", note=note),
        Figure("cost", "a picture without a model", both, "CPU ms", note=note),
        Figure("cost", "of that decoding what came in", decoding, "CPU ms"),
        Figure("cost", "of that packing and encoding pictures", coding, "CPU ms"),
        Figure("cost", "an echo that decodes, to the echo", (echo + decoding) / echo, "x"),
        Figure("cost", "the rest, to the echo", ratio, "x", at_most=1.25),
        Figure("cost", "all of it, to the echo", both / echo, "x", at_most=1.25),
    ]


async def batching(server: Server, crowd: Crowd, seconds: float) -> list[Figure]:
    """Jobs made per second, to those of full batches without a pause; two sizes in turn."""
    sizes = (drawings(96, 64), drawings(64, 96))
    hold = await crowd.ask(num_inference_steps=STEPS * 5)
    sent = await asyncio.gather(
        *(crowd.ask(files=sizes[n % 2], num_inference_steps=STEPS) for n in range(JOBS))
    )
    await crowd.idle()
    assert hold.status == 202
    jobs = [
        (await crowd.send("GET", f"/v1/jobs/{answer.document['id']}")).document for answer in sent
    ]
    began = min(datetime.fromisoformat(job["started_at"]) for job in jobs)
    ended = max(datetime.fromisoformat(job["finished_at"]) for job in jobs)
    taken = (ended - began).total_seconds()
    ideal = JOBS / BATCH * _service_s(BATCH)
    note = f"{JOBS} jobs of {STEPS} steps; a step of n takes {STEP_S:g} s + n x {EACH_S:g} s"
    return [Figure("cost", "batching efficiency", 100 * ideal / taken, "%", 95, note=note)]


async def waiting(server: Server, crowd: Crowd, seconds: float) -> list[Figure]:
    """How long visitors wait who come at random, at 80 % of what the server can do."""
    rng = np.random.default_rng(0)
    rate = LOAD * BATCH / _service_s(BATCH)
    count = int(rate * 2 * seconds)
    visits = []
    for pause in rng.exponential(1 / rate, count):
        visits.append(asyncio.create_task(crowd.ask("/v1/colorize", num_inference_steps=STEPS)))
        await asyncio.sleep(pause)
    answers = await asyncio.gather(*visits)
    wrong = sum(answer.status != 200 for answer in answers)
    times = [answer.seconds for answer in answers if answer.status == 200]
    service = _service_s(BATCH)
    note = (
        f"{count} visitors at {rate:.1f} a second; a full batch takes {service:g} s, one alone "
        f"{_service_s(1):g} s"
    )
    return [
        Figure("cost", "p99 at 80 % load, to a batch", p99(times) / service, "x", None, 3, note),
        Figure("cost", "median at 80 % load", statistics.median(times), "s"),
        Figure("cost", "refused or failed at 80 % load", wrong, "requests", at_most=0),
    ]


def _service_s(count: int) -> float:
    return STEPS * (STEP_S + count * EACH_S)


async def _cpu(server: Server, work: Callable[[], Awaitable[object]], count: int) -> float:
    """CPU seconds of the server while something is done so often, four at a time."""
    began = server.cpu_seconds()
    many = asyncio.Semaphore(4)

    async def one() -> None:
        async with many:
            await work()

    await asyncio.gather(*(one() for _ in range(count)))
    return server.cpu_seconds() - began


def noise() -> Files:
    """A form with 2 MiB of pictures."""
    rng = np.random.default_rng(0)
    files = {}
    for name in ("sketch", "reference"):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(buffer, "PNG")
        files[name] = buffer.getvalue()
    return files


def _picture_ms(files: Files, rounds: int = 5) -> tuple[float, float]:
    """CPU time of decoding the pictures and of all else that happens to them, in this process."""
    recipe = Recipe.of("model", 1, {})
    png, kept = find_format("png"), find_format("ora")
    began, decoding = time.process_time(), 0.0
    for _ in range(rounds):
        decoded_at = time.process_time()
        images = [decode_image(data, name, 2**24) for name, data in files.items()]
        decoding += time.process_time() - decoded_at
        for image in images:
            unpack(pack(image))
        grey = Image.new("L", images[0].size, 255)
        layers = LayeredPicture(Image.new("RGB", grey.size, "red"), grey, grey, 0.0)
        result = encode(layers, kept, recipe)
        for metadata in (False, True):
            convert(result, png, metadata)
    coding = time.process_time() - began - decoding
    return decoding / rounds * 1000, coding / rounds * 1000
