"""Which sketch is coloured with which reference: the three protocols of the evaluation.

The truth is the sample's own picture in all three.

- ``own``: the reference is the sample's own picture.
- ``same_palette``: another character in the same palette. Only its colours help, not its places.
- ``wrong``: a mismatched picture, another character in another palette. A model that uses its
  reference must get worse here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nurie.data.schema import Row
from nurie.data.shards import ShardReader

Protocol = Literal["own", "same_palette", "wrong"]
PROTOCOLS: tuple[Protocol, ...] = ("own", "same_palette", "wrong")
_REFERENCE_COLUMN = {"same_palette": "same_palette_ids", "wrong": "mismatched_ids"}


@dataclass(frozen=True)
class EvaluationPair:
    """One picture to make.

    Attributes:
        sample_id: Sample that gives the sketch and the truth.
        reference_id: Sample that gives the reference.
        protocol: Which of the three.
        order: Place of the sample among the chosen ones, from 0.
        sketch: Which of the sample's sketches, modulo their number.
        seed: Seed of the noise, equal for all protocols of a sample: only the reference differs.
    """

    sample_id: str
    reference_id: str
    protocol: Protocol
    order: int
    sketch: int
    seed: int


@dataclass(frozen=True)
class PairPlan:
    """The chosen pairs and what was left out.

    Attributes:
        pairs: By sample, then by protocol.
        skipped: Protocol -> why samples have no pair of it.
    """

    pairs: tuple[EvaluationPair, ...]
    skipped: dict[str, str]


def choose_pairs(reader: ShardReader, num_samples: int, seed: int) -> PairPlan:
    """Choose samples at random and their reference for every protocol.

    Args:
        reader: The split.
        num_samples: Samples; fewer when the split has fewer.
        seed: The same seed chooses the same pairs.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(reader))[:num_samples]
    columns = ["sample_id", *_REFERENCE_COLUMN.values()]
    rows = reader.index.select(columns).take(chosen).to_pylist()
    pairs: list[EvaluationPair] = []
    missing = dict.fromkeys(PROTOCOLS, 0)
    for order, row in enumerate(rows):
        sketch, noise = (int(value) for value in rng.integers(2**31, size=2))
        for protocol in PROTOCOLS:
            reference = reference_of(row, protocol)
            if reference is None:
                missing[protocol] += 1
            else:
                pairs.append(
                    EvaluationPair(row["sample_id"], reference, protocol, order, sketch, noise)
                )
    skipped = {
        protocol: f"{count} of {len(rows)} samples have no such reference"
        for protocol, count in missing.items()
        if count
    }
    return PairPlan(tuple(pairs), skipped)


def reference_of(row: Row, protocol: Protocol) -> str | None:
    """Sample id of a row's reference, None where it has none of that kind.

    Of several the first: they come in an order drawn when the data set was built.
    """
    if protocol == "own":
        return str(row["sample_id"])
    candidates = row[_REFERENCE_COLUMN[protocol]]
    assert isinstance(candidates, list)
    return candidates[0] if candidates else None
