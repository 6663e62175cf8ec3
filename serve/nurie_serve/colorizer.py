"""The deployment that holds the model: leases jobs, runs them in batches, brings pictures in."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import io
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw
from sqlalchemy.exc import SQLAlchemyError

from nurie.config.serve import ServeConfig
from nurie.inference.formats import convert, encode, find_format
from nurie.inference.layers import LayeredPicture
from nurie.inference.recipe import Recipe
from nurie_serve import errors
from nurie_serve.jobs.pixels import unpack
from nurie_serve.jobs.replicas import ReplicaBoard, Reporter
from nurie_serve.jobs.store import JobStore
from nurie_serve.jobs.work import NewImage, Work, WorkQueue
from nurie_serve.lease_keeper import LeaseKeeper
from nurie_serve.logs import logger
from nurie_serve.metrics import BATCH_JOBS, CacheCount, observe_stages
from nurie_serve.model import ModelLoader, load_model
from nurie_serve.tracing import write_spans

WARM_UP_SIZE = (64, 64)
PROGRESS_EVERY_S = 0.3
PREVIEW_SIDE = 256


class Abandoned(Exception):
    """Nobody waits for the running batch any more."""


@dataclass
class Batch:
    """Leased jobs that run together.

    Args:
        lease: Name of the lease.
        jobs: The jobs.
        inputs: Pictures of each job by name.
        seconds: What took how long.
    """

    lease: str
    jobs: Sequence[Work]
    inputs: Sequence[dict[str, Image.Image]]
    seconds: dict[str, float] = field(default_factory=dict)


class Pulse:
    """Whether the current batch goes on; knows nothing else of the replica."""

    keeper: LeaseKeeper | None = None

    def healthy(self) -> bool:
        """False while a step takes longer than any may."""
        keeper = self.keeper
        return keeper is None or not keeper.stuck


@dataclass(frozen=True)
class Made:
    """A finished picture.

    Args:
        work: Its job.
        picture: In layers.
        recipe: How it was made.
        seconds: What took how long.
    """

    work: Work
    picture: LayeredPicture
    recipe: Recipe
    seconds: dict[str, float]

    def encode(self) -> NewImage:
        """The file that is kept; every other format is made of it."""
        data = encode(self.picture, find_format("ora"), self.recipe)
        plain = convert(data, find_format("png"), metadata=False)
        digest = hashlib.sha256(plain).hexdigest()
        return NewImage(data, self.recipe.seed, *self.picture.colours.size, digest)


class Colorizer:
    """One replica of the model.

    Attributes:
        queue: The jobs.

    Args:
        config: The application's settings.
        load: Returns the pipeline and its description.
    """

    def __init__(self, config: ServeConfig, load: ModelLoader = load_model) -> None:
        self._config = config
        self._executor = ThreadPoolExecutor(1, "denoise")
        self._teller = ThreadPoolExecutor(1, "tell")
        self._turn = asyncio.Lock()
        self._pulse = Pulse()
        self._cache_count = CacheCount()
        self._pipeline, self._info = load(config)
        self._warm_up()
        store = JobStore(config.jobs, config.max_queued_requests)
        self.queue = WorkQueue(store)
        board = ReplicaBoard(store, config.address)
        self._reporter = Reporter(board, self._info, self._pulse.healthy)

    async def work(self, lease: str) -> list[str]:
        """Run the next batch of waiting jobs, if there are any.

        Args:
            lease: Name of the lease; the caller gives the jobs back if this replica dies.

        Returns:
            Ids of the jobs that ended.
        """
        # A caller that goes away does not take the jobs with it.
        return await asyncio.shield(self._work(lease))

    def close(self) -> None:
        """Called when the replica has done its last batch."""
        self._reporter.stop()

    def __del__(self) -> None:
        """Called by Ray Serve after the draining."""
        if hasattr(self, "_reporter"):
            self.close()

    def check_health(self) -> None:
        """Called by Ray Serve; failing makes it replace the replica.

        Raises:
            RuntimeError: If one step takes longer than any may.
        """
        if not self._pulse.healthy():
            limit = self._config.limits.step_timeout_s
            raise RuntimeError(f"no denoising step finished in {limit:g} seconds")

    async def _work(self, lease: str) -> list[str]:
        try:
            async with self._turn:
                jobs = await self._take(lease)
                if not jobs:
                    return []
                loop = asyncio.get_running_loop()
                made = await loop.run_in_executor(self._executor, self._run, lease, jobs)
            # The next batch runs while this one is written.
            await asyncio.to_thread(self._bring_in, lease, made)
            return [work.job_id for work in jobs]
        except Exception:
            logger.exception("lease %s failed", lease)
            await asyncio.to_thread(self.queue.release, lease, counts=True)
            raise

    async def _take(self, lease: str) -> list[Work]:
        """Lease a batch; one that is not full waits a moment for company."""
        most = self._config.max_batch_size
        jobs = await asyncio.to_thread(self.queue.take, lease, most)
        if jobs and len(jobs) < most and jobs[0].attempt == 1:
            await asyncio.sleep(self._config.batch_wait_timeout_s)
            more = most - len(jobs)
            jobs += await asyncio.to_thread(self.queue.take, lease, more, jobs[0].batch_key)
        return jobs

    def _run(self, lease: str, jobs: list[Work]) -> list[Made]:
        """Denoise leased jobs; return those that have a picture."""
        config = self._config
        with LeaseKeeper(self.queue, lease, jobs, config.jobs.lease_s, config.limits) as keeper:
            self._pulse.keeper = keeper
            try:
                began = time.monotonic()
                batch = Batch(lease, jobs, [self._read(work) for work in jobs])
                batch.seconds["decode_s"] = time.monotonic() - began
                return self._run_batch(batch)
            finally:
                self._pulse.keeper = None

    def _run_batch(self, batch: Batch) -> list[Made]:
        try:
            return self._denoise(batch)
        except Abandoned:
            return []
        except Exception as error:
            if _is_out_of_memory(error):
                _free_memory()
            if len(batch.jobs) == 1:
                self._fail(batch, error)
                return []
            # One bad job must not take its neighbours down.
            parts = zip(batch.jobs, batch.inputs, strict=True)
            alone = [Batch(batch.lease, [job], [own], dict(batch.seconds)) for job, own in parts]
            return [made for each in alone for made in self._run_batch(each)]

    def _fail(self, batch: Batch, error: Exception) -> None:
        logger.error("job %s failed", batch.jobs[0].job_id, exc_info=error)
        problem = errors.out_of_memory() if _is_out_of_memory(error) else errors.internal()
        self.queue.fail(batch.lease, batch.jobs[0].job_id, problem.document())

    def _denoise(self, batch: Batch) -> list[Made]:
        keeper = self._pulse.keeper
        assert keeper is not None
        if not any(keeper.wanted(work.job_id) for work in batch.jobs):
            raise Abandoned
        default_steps = self._info.defaults.get("num_inference_steps")
        follow = Follower(self.queue, self._tell, batch, keeper, default_steps)
        controls = {name: v for name, v in batch.jobs[0].params.items() if name != "seed"}
        output = self._pipeline(
            sketch=[own["sketch"] for own in batch.inputs],
            reference=[own["reference"] for own in batch.inputs],
            background=_all_or_none([own.get("background") for own in batch.inputs]),
            foreground_mask=_all_or_none([own.get("mask") for own in batch.inputs]),
            seed=[work.params["seed"] for work in batch.jobs],
            callback_on_step_end=follow,
            **controls,
        )
        batch.seconds["denoise_s"] = time.monotonic() - follow.began
        BATCH_JOBS.observe(len(batch.jobs))
        if (cache := getattr(self._pipeline, "reference_cache", None)) is not None:
            self._cache_count.take(cache.hits, cache.misses)
        return [
            Made(work, picture, Recipe.of(self._info.label, seed, output.controls), batch.seconds)
            for work, picture, seed in zip(batch.jobs, output.layered, output.seeds, strict=True)
        ]

    def _tell(self, write: Callable[..., None], *values: Any) -> None:
        """Have something written while the next step is made."""

        def tell() -> None:
            try:
                write(*values)
            except SQLAlchemyError:
                logger.exception("the job store does not answer")

        self._teller.submit(tell)

    def _bring_in(self, lease: str, made: list[Made]) -> None:
        self._teller.submit(tuple).result()  # progress is told before the end
        extended = time.monotonic()  # or a little before, by the keeper
        for each in made:
            began = time.monotonic()
            if began - extended > self._config.jobs.lease_s / 3:
                self.queue.extend(lease)
                extended = began
            picture = each.encode()
            encoded = {"encode_s": time.monotonic() - began, "queue_s": each.work.waited_s}
            timing = {name: round(s, 3) for name, s in (each.seconds | encoded).items()}
            try:
                if self.queue.finish(lease, each.work, [picture], self._info.label, timing):
                    observe_stages(timing)
                    write_spans(each.work, timing, time.time())
            except OSError as error:
                if not errors.disk_is_full(error):
                    raise
                logger.error("job %s: no room for its picture", each.work.job_id)
                self.queue.fail(lease, each.work.job_id, errors.storage_full().document())

    def _read(self, work: Work) -> dict[str, Image.Image]:
        pictures = {}
        for name, picture_id in work.inputs.items():
            image = unpack(self.queue.read_input(picture_id))
            pictures[name] = _mask(image) if name == "mask" else image
        return pictures

    def _warm_up(self) -> None:
        """Make one small picture: a model that cannot must not take requests."""
        sketch = Image.new("RGB", WARM_UP_SIZE, "white")
        ImageDraw.Draw(sketch).ellipse((16, 16, 48, 48), outline="black", width=2)
        self._pipeline(sketch=[sketch], reference=[sketch], num_inference_steps=1, seed=[0])


class Follower:
    """Called after every step of a batch: tells how far it is, ends what nobody wants.

    Args:
        queue: The store.
        tell: Calls a method of it in another thread.
        batch: The jobs.
        keeper: Of their lease.
        default_steps: Of the model, if it has a number of its own.
    """

    def __init__(
        self,
        queue: WorkQueue,
        tell: Callable[..., None],
        batch: Batch,
        keeper: LeaseKeeper,
        default_steps: float | None,
    ) -> None:
        self._queue = queue
        self._tell = tell
        self._batch = batch
        self._keeper = keeper
        steps = batch.jobs[0].params.get("num_inference_steps") or default_steps
        self._num_steps = None if steps is None else int(steps)
        self.began = time.monotonic()
        self._told = 0.0
        keeper.beat()

    def __call__(self, pipeline: Any, step: int, timestep: Any, values: dict) -> dict:
        """Take note of a step.

        Raises:
            Abandoned: If no job of the batch is wanted any more.
        """
        self._keeper.beat()
        if not any(self._keeper.wanted(work.job_id) for work in self._batch.jobs):
            raise Abandoned
        num_steps = self._num_steps
        done, now = step + 1, time.monotonic()
        if num_steps and done < num_steps and now - self._told >= PROGRESS_EVERY_S:
            self._told = now
            eta_s = (now - self.began) / done * (num_steps - done)
            self._tell(self._queue.progress, self._batch.lease, done, num_steps, eta_s)
        self._preview(pipeline, done, values)
        return values

    def _preview(self, pipeline: Any, done: int, values: dict) -> None:
        asking = [
            index
            for index, work in enumerate(self._batch.jobs)
            if work.preview_every and done % work.preview_every == 0
        ]
        if not asking:
            return
        pictures = pipeline.preview(values["predicted"], PREVIEW_SIDE)
        shown = {
            self._batch.jobs[index].job_id: {"step": done, "image": _jpeg_url(pictures[index])}
            for index in asking
        }
        self._tell(self._queue.preview, self._batch.lease, shown)


def _is_out_of_memory(error: Exception) -> bool:
    # CUDA's error is a RuntimeError of torch, which the model's loader imports, not this module.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _free_memory() -> None:
    """Give back what a failed batch held on the GPU, so that the next one has it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _all_or_none(images: list[Image.Image | None]) -> list[Image.Image | None] | None:
    """The list, or None if the jobs have no such picture (equal within a batch)."""
    return None if images[0] is None else images


def _mask(image: Image.Image) -> Image.Image:
    """A grey mask; what is transparent is not foreground."""
    if image.mode != "RGBA":
        return image.convert("L")
    black = Image.new("RGBA", image.size, "black")
    return Image.alpha_composite(black, image).convert("L")


def _jpeg_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
