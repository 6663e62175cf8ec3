"""Characters in several palettes, of which every truth is known, for tests of the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nurie.data.characters import load_characters
from nurie.data.lines import make_sketch
from nurie.data.palettes import random_palette
from nurie.data.recolour import recolour
from nurie.evaluation.measure import Reference


@dataclass(frozen=True, eq=False)
class Scene:
    """One character in the palettes of four others."""

    sketch: np.ndarray
    mask: np.ndarray
    labels: np.ndarray
    roles: Sequence[str]
    references: list[Reference]
    truths: list[np.ndarray]


def scenes(count: int) -> list[Scene]:
    """So many characters of the test split."""
    characters = [one for one in load_characters() if one.split == "test"]
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        subject = characters[3 * number]
        references, truths = [], []
        for other in (characters[3 * number + 5 + 7 * k] for k in range(4)):
            palette = random_palette(rng, tuple({*subject.roles, *other.roles}))
            given, truth = recolour(other, palette), recolour(subject, palette)
            references.append(Reference(given.image, given.mask > 0))
            truths.append(truth.image)
        sketch = (make_sketch(truth, "ink", rng) * 255).astype(np.uint8)
        made.append(Scene(sketch, truth.mask > 0, truth.labels, subject.roles, references, truths))
    return made
