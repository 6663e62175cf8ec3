"""The deployment that holds the model: batches, steps with a heartbeat, pictures out."""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw
from ray import serve

from nurie.config.serve import ServeConfig
from nurie_serve.schema import ColorizeJob, ColorizeResult, ModelInfo

logger = logging.getLogger(__name__)

WARM_UP_SIZE = (64, 64)


class Abandoned(Exception):
    """Nobody waits for the running batch any more."""


@dataclass
class Ticket:
    """A job on its way through the replica."""

    job: ColorizeJob
    cancelled: bool = False

    @property
    def wanted(self) -> bool:
        """False once the visitor left or time is up."""
        return not (self.cancelled or self.job.expired)


Outcome = ColorizeResult | Exception
ModelLoader = Callable[[ServeConfig], tuple[Any, ModelInfo]]


def load_model(config: ServeConfig) -> tuple[Any, ModelInfo]:
    """Load the pipeline that the configuration names, its files verified by digest.

    Raises:
        CheckpointError: If a file is missing or altered.
    """
    import torch
    from diffusers.utils import logging as diffusers_logging

    from nurie.checkpoints.manifest import manifest_digest
    from nurie.inference.folder import OWN_CONTROLS
    from nurie.inference.pipeline import ColorizationPipeline
    from nurie.tracking.registry import resolve_model

    torch.set_num_threads(config.num_threads)
    # It warns at every load about a list of modules that is empty.
    diffusers_logging.set_verbosity_error()
    device = "cuda" if config.num_gpus > 0 else "cpu"
    folder = resolve_model(config.model, config.tracking_uri)
    pipeline = ColorizationPipeline.from_pretrained(
        folder, torch_dtype=getattr(torch, config.dtype)
    )
    if config.vae_tile_size is not None:
        pipeline.enable_vae_tiling(config.vae_tile_size)
    if config.cpu_offload:
        pipeline.enable_model_cpu_offload()
    else:
        pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    name = config.model if config.model.startswith("models:/") else folder.name
    parts = sorted(path.name for path in folder.iterdir() if path.is_dir())
    own = {control: getattr(pipeline.config, f"default_{control}") for control in OWN_CONTROLS}
    return pipeline, ModelInfo(name, manifest_digest(folder), device, config.dtype, parts, own)


class Colorizer:
    """One replica of the model.

    Args:
        config: The application's settings.
        load: Returns the pipeline and its description.
    """

    def __init__(self, config: ServeConfig, load: ModelLoader = load_model) -> None:
        self._config = config
        self._executor = ThreadPoolExecutor(1, "denoise")
        self._beat: float | None = None
        self._batched = serve.batch(
            max_batch_size=config.max_batch_size,
            batch_wait_timeout_s=config.batch_wait_timeout_s,
        )(self._run_batch)
        self._pipeline, self._info = load(config)
        self._warm_up()

    async def colorize(self, job: ColorizeJob) -> ColorizeResult:
        """Colour one sketch, together with whatever else is waiting.

        Raises:
            TimeoutError: If the job's deadline passed.
        """
        ticket = Ticket(job)
        try:
            outcome = await self._batched(ticket)
        except asyncio.CancelledError:
            ticket.cancelled = True
            raise
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def describe(self) -> ModelInfo:
        """The model of this replica."""
        return self._info

    def check_health(self) -> None:
        """Called by Ray Serve; failing makes it replace the replica.

        Raises:
            RuntimeError: If one step takes longer than a whole request may.
        """
        beat = self._beat
        if beat is not None and time.monotonic() - beat > self._config.limits.deadline_s:
            raise RuntimeError(
                f"no denoising step finished in {self._config.limits.deadline_s:g} seconds"
            )

    async def _run_batch(self, tickets: list[Ticket]) -> list[Outcome]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._run_groups, tickets)

    def _run_groups(self, tickets: list[Ticket]) -> list[Outcome]:
        """Run jobs of equal size and controls together, others one after the other."""
        groups: dict[Any, list[int]] = {}
        for index, ticket in enumerate(tickets):
            groups.setdefault(ticket.job.batch_key, []).append(index)
        outcomes: dict[int, Outcome] = {}
        for indices in groups.values():
            group = [tickets[index] for index in indices]
            outcomes.update(zip(indices, self._run_group(group), strict=True))
        return [outcomes[index] for index in range(len(tickets))]

    def _run_group(self, tickets: list[Ticket]) -> list[Outcome]:
        late = TimeoutError("the deadline passed")
        if not any(ticket.wanted for ticket in tickets):
            return [late] * len(tickets)
        try:
            return list(self._denoise(tickets))
        except Abandoned:
            return [late] * len(tickets)
        except Exception as error:
            if len(tickets) == 1:
                logger.exception("a picture failed")
                return [error]
            # One bad job must not take its neighbours down.
            return [self._run_group([ticket])[0] for ticket in tickets]
        finally:
            self._beat = None

    def _denoise(self, tickets: list[Ticket]) -> list[ColorizeResult]:
        jobs = [ticket.job for ticket in tickets]

        def on_step_end(_: Any, step: int, timestep: Any, values: dict) -> dict:
            self._beat = time.monotonic()
            if not any(ticket.wanted for ticket in tickets):
                raise Abandoned
            return values

        self._beat = time.monotonic()
        output = self._pipeline(
            sketch=[job.sketch for job in jobs],
            reference=[job.reference for job in jobs],
            background=_all_or_none([job.background for job in jobs]),
            foreground_mask=_all_or_none([job.mask for job in jobs]),
            seed=[job.seed for job in jobs],
            callback_on_step_end=on_step_end,
            **jobs[0].controls,
        )
        return [
            ColorizeResult(_png(image), seed, self._info.label)
            for image, seed in zip(output.images, output.seeds, strict=True)
        ]

    def _warm_up(self) -> None:
        """Make one small picture: a model that cannot must not take requests."""
        sketch = Image.new("RGB", WARM_UP_SIZE, "white")
        ImageDraw.Draw(sketch).ellipse((16, 16, 48, 48), outline="black", width=2)
        self._pipeline(sketch=[sketch], reference=[sketch], num_inference_steps=1, seed=[0])


def _all_or_none(images: list[Image.Image | None]) -> list[Image.Image | None] | None:
    """The list, or None if the jobs have no such picture (equal within a batch)."""
    return None if images[0] is None else images


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
