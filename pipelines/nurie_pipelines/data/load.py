"""From positions of a training run to rows: pictures, sketch, mask and references."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np

from nurie.config.data import ReadConfig
from nurie.data.augment import draw_augmentation
from nurie.data.png import decode_png
from nurie.data.schedule import SampleSchedule
from nurie.data.schema import Row
from nurie.data.shards import ShardReader

StageKind = Literal["backbone", "foreground", "background"]
BLEND_PROBABILITY = 0.3
"""Share of sketches that mix two line styles at a random ratio (method section 8)."""
_SAMPLE_COLUMNS = (
    "sample_id",
    "image",
    "sketches",
    "mask",
    "original_area",
    "aesthetic_score",
    "mismatched_ids",
    "same_palette_ids",
)


@dataclass(frozen=True)
class Loader:
    """What a loading task needs to know; small, since it is sent with every task.

    Attributes:
        read: The shards and how they are read.
        stage_kind: Decides the columns.
        seed: Seed of order, sketches and augmentation.
        batch_size: Rows of a global batch.
        rows_per_batch: Rows of it that this worker gets.
        offset: Place of the first of them.
        first_batch: First batch of the run's rest.
        end_batch: Batch after the last.
        batches_per_chunk: Batches made from one row of the task's input.
    """

    read: ReadConfig
    stage_kind: StageKind
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
    rows = _TrainingRows.opened(str(loader.read.shards), loader.seed)
    for number in chunk["id"].tolist():
        for positions in loader.positions(number):
            batch = [rows.row(position, loader) for position in positions]
            yield {name: np.stack([row[name] for row in batch]) for name in batch[0]}


class _TrainingRows:
    """The train split of a data set, kept open by the process of a loading task."""

    def __init__(self, folder: str, seed: int) -> None:
        self.reader = ShardReader(folder, "train")
        self.schedule = SampleSchedule(len(self.reader), seed)
        self.has_latents = self.reader.manifest.latents_shape is not None
        stored = ("latents", "latents_shape") if self.has_latents else ()
        self.columns = (*_SAMPLE_COLUMNS, *stored)

    @classmethod
    def opened(cls, folder: str, seed: int) -> _TrainingRows:
        return _opened(folder, seed)

    def row(self, position: int, loader: Loader) -> Row:
        epoch, index = self.schedule[position]
        sample = self.reader.read([index], self.columns)[0]
        mask = decode_png(sample["mask"], 1)
        row = {
            "position": np.int64(position),
            "sample_id": sample["sample_id"],
            **self._target(sample, loader.stage_kind),
            "sketch": _sketch(sample["sketches"], _rng(loader.seed, position, 0)),
            "foreground_mask": mask,
            "original_area": np.float32(sample["original_area"]),
            "aesthetic_score": np.float32(sample["aesthetic_score"]),
        }
        rng = _rng(loader.seed, position, 1)
        row["reference_image"], reference_mask = self._aligned(sample, rng, loader.read)
        if loader.stage_kind == "backbone":
            ids = sample["mismatched_ids"]
            row["mismatched_image"] = self._image(ids[epoch % len(ids)])
        else:
            row["reference_mask"] = reference_mask
        return row

    def _target(self, sample: Row, stage_kind: StageKind) -> dict[str, np.ndarray]:
        """Return the stored latents, and the picture where it is needed beside or for them."""
        target = {}
        if self.has_latents:
            latents = np.frombuffer(sample["latents"], np.float16)
            target["latents"] = latents.reshape(sample["latents_shape"])
        if stage_kind == "background" or not self.has_latents:
            target["image"] = decode_png(sample["image"], 3)
        return target

    def _aligned(
        self, sample: Row, rng: np.random.Generator, read: ReadConfig
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the aligned reference and its mask, both augmented by the same map."""
        relatives = sample["same_palette_ids"]
        use_relative, choice = rng.random() < read.same_palette_probability, rng.random()
        if relatives and use_relative:
            other = self.reader.row_of[relatives[int(choice * len(relatives))]]
            sample = self.reader.read([other], self.columns)[0]
        image, mask = decode_png(sample["image"], 3), decode_png(sample["mask"], 1)
        augmentation = draw_augmentation(rng, read.augmentation, *mask.shape)
        return augmentation.apply(image), augmentation.apply_to_mask(mask)

    def _image(self, sample_id: str) -> np.ndarray:
        row = self.reader.read([self.reader.row_of[sample_id]], self.columns)[0]
        return decode_png(row["image"], 3)


def _sketch(sketches: list[bytes], rng: np.random.Generator) -> np.ndarray:
    """Pick one line style, or blend two at a random ratio."""
    order, blend, ratio = rng.permutation(len(sketches)), rng.random(), rng.random()
    first = decode_png(sketches[order[0]], 1)
    if len(sketches) == 1 or blend >= BLEND_PROBABILITY:
        return first
    return cv2.addWeighted(first, ratio, decode_png(sketches[order[1]], 1), 1 - ratio, 0)


def _rng(seed: int, position: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, position, purpose])


@lru_cache(maxsize=2)
def _opened(folder: str, seed: int) -> _TrainingRows:
    return _TrainingRows(folder, seed)
