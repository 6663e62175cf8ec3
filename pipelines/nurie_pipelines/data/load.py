"""From positions of a training run to rows: pictures, sketch, mask and references."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from nurie.config.data import ReadConfig
from nurie.config.train import BackgroundStage, DualBranchStage, Stage
from nurie.data.augment import draw_augmentation
from nurie.data.background import NEAR_WHITE, bleach, composite, disturb_mask
from nurie.data.buckets import Bucket, fit
from nurie.data.pixels import decode_pixels
from nurie.data.schedule import BatchSchedule
from nurie.data.schema import Row
from nurie.data.shards import ShardReader

BLEND_PROBABILITY = 0.3
"""Share of sketches that mix two line styles at a random ratio (method section 8)."""
_SAMPLE_COLUMNS = (
    "sample_id",
    "image",
    "sketches",
    "mask",
    "original_area",
    "aesthetic_score",
    "mismatched_rows",
    "same_palette_rows",
)


@dataclass(frozen=True)
class Loader:
    """What a loading task needs to know; small, since it is sent with every task.

    Attributes:
        read: The shards and how they are read.
        stage: Decides the columns, and what happens to the background stage's pictures.
        seed: Seed of order, sketches and augmentation.
        batch_size: Rows of a global batch.
        rows_per_batch: Rows of it that this worker gets.
        offset: Place of the first of them.
        first_batch: First batch of the run's rest.
        end_batch: Batch after the last.
        batches_per_chunk: Batches made from one row of the task's input.
    """

    read: ReadConfig
    stage: Stage
    seed: int
    batch_size: int
    rows_per_batch: int
    offset: int
    first_batch: int
    end_batch: int
    batches_per_chunk: int

    def positions(self, chunk: int) -> Iterator[range]:
        """Yield the positions of every batch of a chunk."""
        start = self.first_batch + chunk * self.batches_per_chunk
        for batch in range(start, min(start + self.batches_per_chunk, self.end_batch)):
            first = batch * self.batch_size + self.offset
            yield range(first, first + self.rows_per_batch)


def load_chunk(chunk: dict[str, np.ndarray], loader: Loader) -> Iterator[dict[str, np.ndarray]]:
    """Yield the batches of one chunk, each with ``rows_per_batch`` rows."""
    cv2.setNumThreads(1)  # other tasks and the trainers use the cores
    rows = _opened(str(loader.read.shards), loader.seed, loader.batch_size)
    for number in chunk["id"].tolist():
        for positions in loader.positions(number):
            batch = [rows.row(position, loader) for position in positions]
            yield {name: np.stack([row[name] for row in batch]) for name in batch[0]}


class _TrainingRows:
    """The train split of a data set, kept open by the process of a loading task."""

    def __init__(self, folder: str, seed: int, batch_size: int) -> None:
        self.reader = ShardReader(folder, "train")
        self.schedule = BatchSchedule(list(self.reader.buckets.values()), batch_size, seed)
        self.has_latents = self.reader.manifest.latent_channels is not None
        stored = ("latents", "latents_shape") if self.has_latents else ()
        self.columns = (*_SAMPLE_COLUMNS, *stored)

    def row(self, position: int, loader: Loader) -> Row:
        epoch, index = self.schedule[position]
        sample = self.reader.read([index], self.columns)[0]
        mask = decode_pixels(sample["mask"])
        row = {
            "position": np.int64(position),
            "sample_id": sample["sample_id"],
            **self._target(sample, loader.stage),
            "sketch": _sketch(sample["sketches"], _rng(loader.seed, position, 0)),
            "foreground_mask": mask,
            "original_area": np.float32(sample["original_area"]),
            "aesthetic_score": np.float32(sample["aesthetic_score"]),
        }
        rng = _rng(loader.seed, position, 1)
        row["reference_image"], reference_mask = self._aligned(sample, rng, loader.read)
        others = sample["mismatched_rows"]
        other = others[epoch % len(others)]
        bucket = Bucket(*mask.shape)
        match loader.stage:
            case DualBranchStage():
                row["mismatched_image"] = self._picture_and_mask(other, bucket)[0]
            case BackgroundStage():
                row["reference_mask"] = reference_mask
                rng = _rng(loader.seed, position, 2)
                unrelated = self._picture_and_mask(other, bucket)
                row |= background_row(row, unrelated, loader.stage, rng)
            case _:
                row["reference_mask"] = reference_mask
        return row

    def _target(self, sample: Row, stage: Stage) -> dict[str, np.ndarray]:
        """Return the stored latents, and the picture where it is needed beside or for them."""
        target = {}
        if self.has_latents:
            latents = np.frombuffer(sample["latents"], np.float16)
            target["latents"] = latents.reshape(sample["latents_shape"])
        if isinstance(stage, BackgroundStage) or not self.has_latents:
            target["image"] = decode_pixels(sample["image"])
        return target

    def _aligned(
        self, sample: Row, rng: np.random.Generator, read: ReadConfig
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the aligned reference and its mask, both augmented by the same map."""
        relatives = sample["same_palette_rows"]
        use_relative, choice = rng.random() < read.same_palette_probability, rng.random()
        if relatives and use_relative:
            other = relatives[int(choice * len(relatives))]
            sample = self.reader.read([other], self.columns)[0]
        image, mask = decode_pixels(sample["image"]), decode_pixels(sample["mask"])
        augmentation = draw_augmentation(rng, read.augmentation, *mask.shape)
        return augmentation.apply(image), augmentation.apply_to_mask(mask)

    def _picture_and_mask(self, index: int, bucket: Bucket) -> tuple[np.ndarray, np.ndarray]:
        """A picture in the shape of the batch: it may come from another bucket."""
        row = self.reader.read([index], self.columns)[0]
        mask = fit(decode_pixels(row["mask"]), bucket, cv2.INTER_NEAREST)
        return fit(decode_pixels(row["image"]), bucket), mask


def background_row(
    row: Row,
    other: tuple[np.ndarray, np.ndarray],
    stage: BackgroundStage,
    rng: np.random.Generator,
) -> Row:
    """Return the columns in which a row of the background stage differs (method section 7).

    Args:
        row: Picture, sketch, masks and aligned reference.
        other: The mismatched picture and its mask, whose foreground inpainting puts in.
        stage: Probabilities.
        rng: Source of all choices; always advanced by the same number of draws.
    """
    bleached, inpainted, disturbed = rng.random(3) < (
        stage.bleach_probability,
        stage.inpaint_probability,
        stage.mask_noise_probability,
    )
    grey = int(rng.integers(*NEAR_WHITE))
    image, mask = row["image"], row["foreground_mask"]
    background, background_mask = row["reference_image"], row["reference_mask"]
    if inpainted:
        # The background stays where it is; the foreground over it is somebody else.
        background, background_mask = composite(*other, image), other[1]
    changed: Row = {}
    if bleached:
        image = bleach(image, mask, grey)
        changed["sketch"] = bleach(row["sketch"], mask, 255)
        background = bleach(background, background_mask, grey)
    if disturbed:
        background_mask = disturb_mask(background_mask, rng)
    return changed | {
        "image": image,
        "background_image": background,
        "reference_mask": background_mask,
    }


def _sketch(sketches: list[bytes], rng: np.random.Generator) -> np.ndarray:
    """Pick one line style, or blend two at a random ratio."""
    order, blend, ratio = rng.permutation(len(sketches)), rng.random(), rng.random()
    first = decode_pixels(sketches[order[0]])
    if len(sketches) == 1 or blend >= BLEND_PROBABILITY:
        return first
    return cv2.addWeighted(first, ratio, decode_pixels(sketches[order[1]]), 1 - ratio, 0)


def _rng(seed: int, position: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, position, purpose])


@lru_cache(maxsize=2)
def _opened(folder: str, seed: int, batch_size: int) -> _TrainingRows:
    return _TrainingRows(folder, seed, batch_size)
