"""The Ray actor that colours and measures: one pipeline, many batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nurie.data.png import encode_png
from nurie.data.shards import ShardReader
from nurie.evaluation.measure import COLUMNS, Picture, measure
from nurie.evaluation.pairs import EvaluationPair


class ColorizeAndMeasure:
    """Turns batches of pairs into results and their metrics.

    Args:
        model: Model folder, verified by the driver.
        reference: What the driver resolved it from; on a node that does not see the driver's disk
            it is resolved again, from the registry.
        tracking_uri: The MLflow store, a SQLite path in it absolute.
        shards: Data set folder; its test split is read here, so pictures do not travel.
        num_inference_steps: Denoising steps.
        guidance_scale: Reference guidance.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(
        self,
        model: Path,
        reference: str,
        tracking_uri: str,
        shards: Path | str,
        num_inference_steps: int | None,
        guidance_scale: float | None,
        device: str,
    ) -> None:
        from nurie.inference.pipeline import ColorizationPipeline

        if not model.is_dir():
            from nurie.tracking.registry import resolve_model

            model = resolve_model(reference, tracking_uri)
        self.pipeline = ColorizationPipeline.from_pretrained(str(model)).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.settings = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
        }
        self.reader = ShardReader(shards, "test")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Colour a batch of pairs.

        Args:
            batch: The fields of ``EvaluationPair`` as columns.

        Returns:
            The same columns plus ``result`` (PNG), ``metrics`` (JSON), ``style`` (of the sketch).
        """
        pairs = [
            EvaluationPair(**dict(zip(batch, values, strict=True)))
            for values in zip(*(column.tolist() for column in batch.values()), strict=True)
        ]
        done: dict[int, dict[str, Any]] = {}
        for indices in self._of_one_size(pairs):
            results = self._colour([pairs[i] for i in indices])
            done.update(zip(indices, results, strict=True))
        rows = [done[i] for i in range(len(pairs))]
        return batch | {
            name: np.array([row[name] for row in rows], dtype=object)
            for name in ("result", "metrics", "style")
        }

    def _of_one_size(self, pairs: list[EvaluationPair]) -> Iterator[list[int]]:
        """Indices of pairs whose sketches have the same size: a pipeline batch is one tensor."""
        rows = self.reader.read(
            [self.reader.row_of[pair.sample_id] for pair in pairs], ["height", "width"]
        )
        sizes = [(row["height"], row["width"]) for row in rows]
        by_size = sorted(range(len(pairs)), key=sizes.__getitem__)
        for _, group in groupby(by_size, key=sizes.__getitem__):
            yield list(group)

    def _colour(self, pairs: list[EvaluationPair]) -> list[dict[str, Any]]:
        samples = [self._picture(pair.sample_id, pair.sketch) for pair in pairs]
        references = [self._picture(pair.reference_id) for pair in pairs]
        height, width = samples[0].sketch.shape
        output = self.pipeline(
            sketch=[Image.fromarray(sample.sketch) for sample in samples],
            reference=[Image.fromarray(reference.image) for reference in references],
            seed=[pair.seed for pair in pairs],
            height=height,
            width=width,
            **self.settings,
        )
        done = []
        for image, sample, reference in zip(output.images, samples, references, strict=True):
            result = np.asarray(image.convert("RGB"))
            metrics = json.dumps(measure(result, sample, reference))
            done.append({"result": encode_png(result), "metrics": metrics, "style": sample.style})
        return done

    def _picture(self, sample_id: str, sketch: int = 0) -> Picture:
        return Picture.of(self.reader.read([self.reader.row_of[sample_id]], COLUMNS)[0], sketch)
