"""What an evaluation makes and scores, one task at a time; tasks are independent of each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from nurie.data.shards import ShardReader
from nurie.evaluation.alterations import ALTERATIONS
from nurie.evaluation.disentanglement import entanglement, score_swaps
from nurie.evaluation.measure import COLUMNS, Picture, Reference, measure
from nurie.evaluation.pairs import EvaluationPair

MODEL = "model"
"""System that is evaluated; all others are peers."""
SWAPS = "swaps"
"""Protocol of the disentanglement benchmark."""
GRAM = "gram"
"""Protocol of the Gram heat maps, which makes pictures to look at and no metric."""
METRICS_VERSION = 1
"""Counts up when a metric changes its meaning, so that older results are measured again."""


@dataclass(frozen=True)
class Task:
    """Pictures that are made and scored together.

    Attributes:
        system: ``model`` or a peer.
        protocol: ``own``, ``same_palette``, ``wrong``, ``swaps`` or ``gram``.
        sample_id: Sample that gives the sketch and the truth.
        reference_ids: Samples that give the references; of ``swaps`` the last one may stand for
            another silhouette in the first one's palette.
        order: Place of the sample among the chosen ones, from 0.
        sketch: Which of the sample's sketches, modulo their number.
        seed: Seed of the noise.
        silhouette: Whether the last reference is that other silhouette.
    """

    system: str
    protocol: str
    sample_id: str
    reference_ids: tuple[str, ...]
    order: int
    sketch: int = 0
    seed: int = 0
    silhouette: bool = False

    @property
    def key(self) -> str:
        """Name of the task, the same in every run with the same settings."""
        return f"{self.system}/{self.protocol}/{self.order}/{self.sample_id}"

    def to_json(self) -> str:
        """The task as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Read what :meth:`to_json` wrote."""
        values = json.loads(text)
        return cls(**(values | {"reference_ids": tuple(values["reference_ids"])}))

    @classmethod
    def of_pair(cls, pair: EvaluationPair, system: str = MODEL) -> Task:
        """The task of one picture."""
        references = (pair.reference_id,)
        return cls(
            system, pair.protocol, pair.sample_id, references, pair.order, pair.sketch, pair.seed
        )


@dataclass(frozen=True, eq=False)
class Order:
    """One picture to make.

    Attributes:
        name: What it is for; of a swap the reference's number or a type of entanglement.
        sample: The sketch and what is known about it.
        reference: The reference.
        seed: Seed of the noise.
    """

    name: str
    sample: Picture
    reference: Reference
    seed: int


class Source(Protocol):
    """Gives a task its pictures."""

    def orders(self, task: Task) -> list[Order]:
        """The pictures of a task, always in the same order."""
        ...


class ShardSource:
    """Tasks on the test split of a data set.

    Args:
        shards: Data set folder, a path or an address.
    """

    def __init__(self, shards: Path | str) -> None:
        self._reader = ShardReader(shards, "test")
        self._picture = lru_cache(maxsize=64)(self._read)

    def orders(self, task: Task) -> list[Order]:
        """The pictures of a task; see ``Source``."""
        sample = self._picture(task.sample_id, task.sketch)
        references = [self._reference(sample_id) for sample_id in task.reference_ids]
        if task.protocol != SWAPS:
            return [
                Order(str(number), sample, reference, task.seed)
                for number, reference in enumerate(references)
            ]
        swapped = references[: len(references) - task.silhouette]
        orders = [Order(str(n), sample, one, task.seed) for n, one in enumerate(swapped)]
        orders.append(Order("other_seed", sample, swapped[0], task.seed + 1))
        if task.silhouette:
            orders.append(Order("silhouette", sample, references[-1], task.seed))
        for name, alter in ALTERATIONS.items():
            # Not hash(): Python salts that anew in every process.
            salt = hashlib.sha256(f"{name}/{task.key}".encode()).digest()
            rng = np.random.default_rng([task.seed, *salt[:8]])
            orders.append(Order(name, sample, alter(swapped[0], rng), task.seed))
        return orders

    def _reference(self, sample_id: str) -> Reference:
        picture = self._picture(sample_id, 0)
        assert picture.image is not None
        return Reference(picture.image, picture.mask)

    def _read(self, sample_id: str, sketch: int) -> Picture:
        row = self._reader.row_of[sample_id]
        return Picture.of(self._reader.read([row], COLUMNS)[0], sketch)


def score(task: Task, orders: Sequence[Order], results: Sequence[np.ndarray]) -> dict[str, float]:
    """Every metric of a task's pictures, those of networks excepted.

    Args:
        task: The task.
        orders: Its orders.
        results: A picture for every order, uint8 [H, W, 3].
    """
    if task.protocol == GRAM:
        return {}
    if task.protocol != SWAPS:
        return measure(results[0], orders[0].sample, orders[0].reference)
    swapped = [number for number, order in enumerate(orders) if order.name.isdigit()]
    values = score_swaps(
        [results[number] for number in swapped],
        [orders[number].reference for number in swapped],
        orders[0].sample.mask,
    )
    for order, result in zip(orders, results, strict=True):
        if not order.name.isdigit():
            values[f"entanglement/{order.name}"] = entanglement(results[0], result)
    return values


def swap_tasks(
    reader: ShardReader,
    pairs: Sequence[EvaluationPair],
    num_sketches: int,
    num_references: int,
    system: str = MODEL,
) -> list[Task]:
    """The tasks of the disentanglement benchmark, on the first sketches of the chosen ones.

    References are the sample's mismatched ones, in the order drawn when the data set was built; a
    sample with less than two has no task.
    """
    first: Mapping[int, EvaluationPair] = {
        pair.order: pair for pair in reversed(pairs) if pair.order < num_sketches
    }
    rows = [reader.row_of[first[order].sample_id] for order in sorted(first)]
    index = reader.index.select(["mismatched_ids"]).take(rows).to_pylist()
    tasks = []
    for order, row in zip(sorted(first), index, strict=True):
        pair = first[order]
        references = tuple(row["mismatched_ids"][:num_references])
        if len(references) < 2:
            continue
        silhouette = _same_palette(reader, references[0], pair.sample_id)
        tasks.append(
            Task(
                system,
                SWAPS,
                pair.sample_id,
                (*references, *silhouette),
                order,
                pair.sketch,
                pair.seed,
                bool(silhouette),
            )
        )
    return tasks


def _same_palette(reader: ShardReader, sample_id: str, other_than: str) -> tuple[str, ...]:
    column = reader.index.select(["same_palette_ids"]).slice(reader.row_of[sample_id], 1)
    ids = column.to_pylist()[0]["same_palette_ids"]
    return tuple(one for one in ids if one != other_than)[:1]
