"""The plan of a build: every sample, its palette and its references, before any picture is made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nurie.config.data import CharactersSource
from nurie.data.buckets import Bucket
from nurie.data.characters import ROLES, Character
from nurie.data.colour_histogram import colour_histogram
from nurie.data.mismatch import MismatchSampler, MismatchStrategy
from nurie.data.palettes import Palette, random_palette
from nurie.data.schema import PLAN_SCHEMA, Row
from nurie.data.tags import tags_for

SPLITS = ("train", "test")

UNSCORED_AESTHETICS = 7.0
"""Score of pictures that no scorer has seen: the one that inference asks for (method section 4)."""


@dataclass(frozen=True, eq=False)
class ShardPlan:
    """One shard to be: its file, its split, its bucket and its rows of the plan."""

    file: str
    split: str
    bucket: str
    rows: pa.Table


def plan_characters(
    characters: Sequence[Character],
    source: CharactersSource,
    image_size: int,
    seed: int,
    mismatch_rounds: int,
    strategy: MismatchStrategy = "tag_distance",
) -> pa.Table:
    """Plan one sample per character and round, several characters sharing each palette.

    Args:
        characters: The character set, both splits.
        source: How many palettes, and how many characters share one.
        image_size: Side of the pictures, in pixels.
        seed: Seed of palettes, groups and references.
        mismatch_rounds: Mismatched references per sample.
        strategy: How they are chosen.

    Returns:
        A table with ``PLAN_SCHEMA``: train first, then test, each round by round.

    Raises:
        ValueError: If a sample can have no mismatched reference.
    """
    rows = [
        row
        for number, split in enumerate(SPLITS)
        for row in _split_rows(
            [character for character in characters if character.split == split][
                : source.max_characters
            ],
            source,
            (seed, number),
        )
    ]
    for row in rows:
        row["bucket"] = Bucket(image_size, image_size).name
    return finish_plan(rows, seed, mismatch_rounds, strategy)


def finish_plan(
    rows: list[Row], seed: int, mismatch_rounds: int, strategy: MismatchStrategy = "tag_distance"
) -> pa.Table:
    """Add the mismatched references to planned rows.

    Args:
        rows: Planned rows, with ``colours`` beside the columns of the plan.
        seed: Seed of the choices.
        mismatch_rounds: Mismatched references per sample.
        strategy: How they are chosen.

    Raises:
        ValueError: If a sample can have no mismatched reference.
    """
    narrow = ("sample_id", "group_id", "palette_id", "tags", "split", "colours")
    index = pa.table({name: [row[name] for row in rows] for name in narrow})
    sampler = MismatchSampler(index, seed, strategy)
    for row in rows:
        row["mismatched_ids"] = [
            sampler.choose(row["sample_id"], epoch) for epoch in range(mismatch_rounds)
        ]
    return pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)


def shard_plans(plan: pa.Table, rows_per_shard: int) -> list[ShardPlan]:
    """Cut a plan into shards: consecutive rows of one split and bucket, a folder per bucket."""
    shards = []
    for split, bucket in product(SPLITS, sorted(set(plan["bucket"].to_pylist()))):
        rows = plan.filter((pc.field("split") == split) & (pc.field("bucket") == bucket))
        for number, start in enumerate(range(0, rows.num_rows, rows_per_shard)):
            part = rows.slice(start, rows_per_shard)
            file = f"bucket={bucket}/{split}-{number:05d}.parquet"
            shards.append(ShardPlan(file, split, bucket, part))
    return shards


def palette_to_json(palette: Palette) -> str:
    """Return a palette as JSON of role to ``#rrggbb``."""
    return json.dumps({role: _to_hex(colour) for role, colour in palette.items()})


def palette_from_json(text: str) -> Palette:
    """Return the palette that :func:`palette_to_json` wrote (8 bits per channel)."""
    return {role: _from_hex(colour) for role, colour in json.loads(text).items()}


def sample_rng(seed: int, sample_id: str, purpose: str) -> np.random.Generator:
    """Return a generator that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{sample_id}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _split_rows(
    characters: list[Character], source: CharactersSource, seed: tuple[int, int]
) -> list[Row]:
    rows = []
    for turn in range(source.palettes_per_character):
        rng = np.random.default_rng([*seed, turn])
        order = rng.permutation(len(characters))
        num_palettes = max(1, len(order) // source.characters_per_palette)
        for number, members in enumerate(np.array_split(order, num_palettes)):
            name = f"p{turn:02d}-{number:04d}"
            rows += _palette_rows([characters[i] for i in members], rng, name)
    return rows


def _palette_rows(characters: list[Character], rng: np.random.Generator, name: str) -> list[Row]:
    """Plan the characters that share one freshly drawn palette."""
    text = palette_to_json(random_palette(rng, ROLES))
    # Back from 8 bits, so that tags and pictures see exactly the stored colours.
    palette = palette_from_json(text)
    colours = colour_histogram(np.array([[*map(_to_bytes, palette.values())]], np.uint8))
    ids = [f"{character.character_id}-{name}" for character in characters]
    return [
        {
            "sample_id": sample_id,
            "source": "characters",
            "sketch_source": None,
            "mask_source": None,
            "character_id": character.character_id,
            "palette_id": f"{character.split}-{name}",
            "group_id": character.character_id,
            "split": character.split,
            "roles": list(ROLES),
            "palette": text,
            "tags": tags_for(character, palette),
            "colours": colours,
            "aesthetic_score": UNSCORED_AESTHETICS,
            "same_palette_ids": [other for other in ids if other != sample_id],
        }
        for sample_id, character in zip(ids, characters, strict=True)
    ]


def _to_hex(colour: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in _to_bytes(colour))


def _to_bytes(colour: tuple[float, float, float]) -> tuple[int, ...]:
    return tuple(round(255 * channel) for channel in colour)


def _from_hex(text: str) -> tuple[float, float, float]:
    red, green, blue = (int(text[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return red, green, blue
