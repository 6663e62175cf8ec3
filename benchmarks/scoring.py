"""Evaluation: pictures that are made and measured against pictures that are made."""

from __future__ import annotations

import numpy as np
from PIL import Image

from benchmarks.measure import Row, compare
from nurie.data.assets import find_assets
from nurie.data.examples import example_pairs
from nurie.evaluation.measure import Picture, Reference, measure

_BATCH = 8


def run(rounds: int = 3) -> Row:
    """One batch of the shipped model; masks as the characters have them, every metric."""
    from nurie.inference.pipeline import ColorizationPipeline

    pipeline = ColorizationPipeline.from_pretrained(find_assets("nano"))
    pipeline.set_progress_bar_config(disable=True)
    pairs = example_pairs(_BATCH, seed=0)
    figures = [(pair.truth < 250).any(axis=2) for pair in pairs]
    samples = [
        Picture(pair.truth, pair.sketch, "ink", figure, figure.astype(np.uint8), ("rest", "figure"))
        for pair, figure in zip(pairs, figures, strict=True)
    ]

    def made() -> list[np.ndarray]:
        output = pipeline(
            sketch=[Image.fromarray(pair.sketch) for pair in pairs],
            reference=[Image.fromarray(pair.reference) for pair in pairs],
            seed=list(range(_BATCH)),
        )
        return [np.asarray(image) for image in output.images]

    def made_and_measured() -> None:
        for result, sample, pair in zip(made(), samples, pairs, strict=True):
            measure(result, sample, Reference(pair.reference))

    seconds = compare(made_and_measured, made, rounds)
    return Row("evaluated pictures | pictures alone", *seconds, 0.85, "same pictures")
