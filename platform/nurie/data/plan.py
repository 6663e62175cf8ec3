"""The plan of a build: every sample, its palette and its references, before any picture is made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nurie.config.data import CharactersSource
from nurie.data.characters import ROLES, Character
from nurie.data.mismatch import MismatchSampler
from nurie.data.palettes import Palette, random_palette
from nurie.data.schema import PLAN_SCHEMA, Row
from nurie.data.tags import tags_for

SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class ShardPlan:
    """One shard to be: its file name, its split and its rows of the plan."""

    file: str
    split: str
    rows: pa.Table


def plan_characters(
    characters: Sequence[Character], source: CharactersSource, seed: int, mismatch_rounds: int
) -> pa.Table:
    """Plan one sample per character and round, several characters sharing each palette.

    Args:
        characters: The character set, both splits.
        source: How many palettes, and how many characters share one.
        seed: Seed of palettes, groups and references.
        mismatch_rounds: Mismatched references per sample.

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
    return finish_plan(rows, seed, mismatch_rounds)


def finish_plan(rows: list[Row], seed: int, mismatch_rounds: int) -> pa.Table:
    """Add the mismatched references to planned rows.

    Raises:
        ValueError: If a sample can have no mismatched reference.
    """
    narrow = ("sample_id", "group_id", "palette_id", "tags", "split")
    index = pa.table({name: [row[name] for row in rows] for name in narrow})
    sampler = MismatchSampler(index, seed)
    for row in rows:
        row["mismatched_ids"] = [
            sampler.choose(row["sample_id"], epoch) for epoch in range(mismatch_rounds)
        ]
    return pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)


def shard_plans(plan: pa.Table, rows_per_shard: int) -> list[ShardPlan]:
    """Cut a plan into shards: consecutive rows of one split."""
    shards = []
    for split in SPLITS:
        rows = plan.filter(pc.field("split") == split)
        for number, start in enumerate(range(0, rows.num_rows, rows_per_shard)):
            part = rows.slice(start, rows_per_shard)
            shards.append(ShardPlan(f"{split}-{number:05d}.parquet", split, part))
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
            "same_palette_ids": [other for other in ids if other != sample_id],
        }
        for sample_id, character in zip(ids, characters, strict=True)
    ]


def _to_hex(colour: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in colour)


def _from_hex(text: str) -> tuple[float, float, float]:
    red, green, blue = (int(text[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return red, green, blue
