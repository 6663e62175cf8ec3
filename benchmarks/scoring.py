"""Evaluation: pictures that are made and measured against pictures that are made."""

from __future__ import annotations

import numpy as np
from PIL import Image

from benchmarks.measure import Row, compare
from nurie.data.assets import find_assets
from nurie.data.examples import ExamplePair, example_pairs
from nurie.evaluation.measure import Picture, Reference, measure

_SAMPLES = 3
_REFERENCES = 3


def run(rounds: int = 3) -> Row:
    """One batch of the shipped model; masks as the characters have them, every metric.

    As an evaluation has it, every sample comes with its own picture and with two others.
    """
    from nurie.inference.pipeline import ColorizationPipeline

    pipeline = ColorizationPipeline.from_pretrained(find_assets("nano"))
    pipeline.set_progress_bar_config(disable=True)
    pairs = example_pairs(_SAMPLES * _REFERENCES, seed=0)
    samples = [_sample(pairs[number]) for number in range(_SAMPLES) for _ in range(_REFERENCES)]
    references = [
        pair.reference if number % _REFERENCES else pairs[number // _REFERENCES].truth
        for number, pair in enumerate(pairs)
    ]

    def made() -> list[np.ndarray]:
        output = pipeline(
            sketch=[Image.fromarray(sample.sketch) for sample in samples],
            reference=[Image.fromarray(reference) for reference in references],
            seed=list(range(len(samples))),
            line_overlay=0.0,
        )
        return [np.asarray(image) for image in output.images]

    def made_and_measured() -> None:
        for result, sample, reference in zip(made(), samples, references, strict=True):
            measure(result, sample, Reference(reference, _figure(reference)))

    seconds = compare(made_and_measured, made, rounds)
    return Row("evaluated pictures | pictures alone", *seconds, 0.9, "same pictures")


def _sample(pair: ExamplePair) -> Picture:
    figure = _figure(pair.truth)
    labels = figure.astype(np.uint8)
    return Picture(pair.truth, pair.sketch, "ink", figure, labels, ("rest", "figure"))


def _figure(picture: np.ndarray) -> np.ndarray:
    """Where a picture is not white, bool [H, W]."""
    return np.min(picture, axis=2) < 250
