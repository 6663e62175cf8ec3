"""Sample grids during training: the same unseen sketches and noise, drawn again and again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from nurie.data.manifest import read_manifest
from nurie.data.pixels import decode_pixels
from nurie.data.shards import ShardReader
from nurie.evaluation.sheet import grid
from nurie.inference.pipeline import ColorizationPipeline
from nurie.models.colorizer import ColorizationModel

if TYPE_CHECKING:
    from nurie_pipelines.train.job import StageJob

NUM_SAMPLES = 4
NUM_INFERENCE_STEPS = 12
_COLUMNS = ["sample_id", "image", "sketches", "mask", "mismatched_ids"]


def _picture(data: bytes, mode: str) -> Image.Image:
    return Image.fromarray(decode_pixels(data)).convert(mode)


class SampleGrid:
    """Rows of sketch, own picture, result with it, unrelated picture, result with that.

    Args:
        job: The stage.
    """

    def __init__(self, job: StageJob) -> None:
        self.job = job
        shards = job.data.shards
        # A small collection has no test split.
        splits = read_manifest(shards).counts
        reader = ShardReader(shards, "test" if "test" in splits else "train")
        stride = max(1, len(reader) // NUM_SAMPLES)
        rows = list(range(0, len(reader), stride))[:NUM_SAMPLES]
        self.samples = reader.read(rows, _COLUMNS)
        wrong = [reader.row_of[sample["mismatched_ids"][0]] for sample in self.samples]
        self.others = reader.read(wrong, _COLUMNS)

    @torch.no_grad()
    def draw(self, model: ColorizationModel, step: int) -> Path:
        """Colours the samples and writes ``samples/step-000500.png``."""
        training = model.training
        pipeline = ColorizationPipeline.from_model(model.eval(), self.job.config.components)
        sketches = [_picture(s["sketches"][0], "RGB") for s in self.samples]
        own = [_picture(s["image"], "RGB") for s in self.samples]
        wrong = [_picture(s["image"], "RGB") for s in self.others]
        masks = [_picture(s["mask"], "L") for s in self.samples]
        other_masks = [_picture(s["mask"], "L") for s in self.others]
        results = [
            pipeline(
                sketch=sketch,
                reference=[mine, other],
                foreground_mask=mask,
                reference_mask=[mask, other_mask],
                num_inference_steps=NUM_INFERENCE_STEPS,
                seed=[number, number],
            ).images
            # Samples may have different shapes; those of one call have one.
            for number, (sketch, mine, other, mask, other_mask) in enumerate(
                zip(sketches, own, wrong, masks, other_masks, strict=True)
            )
        ]
        model.train(training)
        rows = [
            [sketch, mine, with_own, other, with_other]
            for sketch, mine, other, (with_own, with_other) in zip(
                sketches, own, wrong, results, strict=True
            )
        ]
        headers = ["sketch", "own picture", "result", "other picture", "result"]
        path = self.job.folder / "samples" / f"step-{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grid(rows, headers).save(path)
        return path
