"""Sample grids during training: the same unseen sketches and noise, drawn again and again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from nurie.data.pixels import decode_pixels
from nurie.data.schema import Row
from nurie.evaluation.pairs import PROTOCOLS, reference_of
from nurie.evaluation.sheet import grid
from nurie.inference.pipeline import ColorizationPipeline
from nurie.models.colorizer import ColorizationModel
from nurie.tracking.outbox import SAMPLES_FOLDER
from nurie_pipelines.train.validation import unseen_samples

if TYPE_CHECKING:
    from nurie_pipelines.train.job import StageJob

NUM_SAMPLES = 4
NUM_INFERENCE_STEPS = 12
_COLUMNS = ["sample_id", "image", "sketches", "mask", "mismatched_ids", "same_palette_ids"]
_HEADERS = {"own": "own picture", "same_palette": "same palette", "wrong": "other picture"}


def _picture(data: bytes, mode: str) -> Image.Image:
    return Image.fromarray(decode_pixels(data)).convert(mode)


@dataclass(frozen=True)
class _Reference:
    image: Image.Image
    mask: Image.Image


class SampleGrid:
    """Rows of sketch, then pairs of reference and result: own picture, same palette, unrelated.

    Columns of the same palette are there where the data set has such pictures for all rows.

    Args:
        job: The stage.
    """

    def __init__(self, job: StageJob) -> None:
        self.job = job
        reader, rows = unseen_samples(job.data.shards, NUM_SAMPLES)
        self.samples = reader.read(rows, _COLUMNS)
        found = {p: [reference_of(sample, p) for sample in self.samples] for p in PROTOCOLS}
        self.protocols = [p for p in PROTOCOLS if all(found[p])]
        self.references = [
            [
                _reference(reader.read([reader.row_of[str(found[p][row])]], _COLUMNS)[0])
                for p in self.protocols
            ]
            for row in range(len(self.samples))
        ]

    @torch.no_grad()
    def draw(self, model: ColorizationModel, step: int) -> Path:
        """Colours the samples and writes ``samples/step-000500.png``."""
        training = model.training
        pipeline = ColorizationPipeline.from_model(model.eval(), self.job.config.components)
        rows = [list(self._row(pipeline, number)) for number in range(len(self.samples))]
        model.train(training)
        headers = ["sketch"]
        for protocol in self.protocols:
            headers += [_HEADERS[protocol], "result"]
        path = self.job.folder / SAMPLES_FOLDER / f"step-{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grid(rows, headers).save(path)
        return path

    def _row(self, pipeline: ColorizationPipeline, number: int) -> Iterator[Image.Image]:
        """Pictures of one sample; samples may have different shapes, those of one call have one."""
        sample, references = self.samples[number], self.references[number]
        sketch = _picture(sample["sketches"][0], "RGB")
        results = pipeline(
            sketch=sketch,
            reference=[reference.image for reference in references],
            foreground_mask=_picture(sample["mask"], "L"),
            reference_mask=[reference.mask for reference in references],
            num_inference_steps=NUM_INFERENCE_STEPS,
            line_overlay=0.0,  # shows what the model itself makes
            seed=[number] * len(references),
        ).images
        yield sketch
        for reference, result in zip(references, results, strict=True):
            yield reference.image
            yield result


def _reference(row: Row) -> _Reference:
    return _Reference(_picture(row["image"], "RGB"), _picture(row["mask"], "L"))
