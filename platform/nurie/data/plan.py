"""The plan of a build: every sample, its palette and its references, before any picture is made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from nurie.config.data import CharactersSource, DataConfig
from nurie.data.buckets import Bucket
from nurie.data.characters import ROLES, Character
from nurie.data.colour_histogram import colour_histogram
from nurie.data.mismatch import MismatchSampler
from nurie.data.palettes import Palette, random_palette
from nurie.data.schema import PLAN_SCHEMA, Row
from nurie.data.tags import tags_for

SPLITS = ("train", "test")

UNSCORED_AESTHETICS = 7.0
"""Score of pictures that no scorer has seen: the one that inference asks for (method section 4)."""


class ShardPlan(NamedTuple):
    """One shard to be: its file, its split, its bucket and which places of the plan it holds."""

    file: str
    split: str
    bucket: str
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """How many samples it holds."""
        return self.stop - self.start


class Plan:
    """Every sample of a build, column by column: a set of millions fits into memory.

    Samples have two numbers: their *row* in the table they are planned from, and their *place*, in
    the order in which the shards hold them: by split, then by bucket, then by row.

    Args:
        samples: The columns of ``PLAN_SCHEMA``, in any encoding, but for the references; instead
            ``relatives`` (rows of the samples with the same palette) and, for the strategy
            ``hard``, ``colours``.
        config: Seed and strategy of the mismatched references, and how many a sample gets.

    Raises:
        ValueError: If a sample can have no mismatched reference.
    """

    def __init__(self, samples: pa.Table, config: DataConfig) -> None:
        sampler = MismatchSampler(samples, config.seed, config.mismatch_strategy)
        rows = np.arange(samples.num_rows)
        self._mismatched = np.empty((samples.num_rows, config.mismatch_rounds), np.int32)
        for epoch in range(config.mismatch_rounds):
            self._mismatched[:, epoch] = sampler.choose(rows, epoch)
        self.samples = samples
        splits = _sorted_places(samples["split"], SPLITS.index)
        buckets = _sorted_places(samples["bucket"])
        self._rows = np.lexsort((buckets, splits)).astype(np.int32)
        self._row_in_split = np.empty(samples.num_rows, np.int32)
        for split in range(splits.max() + 1):
            members = self._rows[splits[self._rows] == split]
            self._row_in_split[members] = np.arange(len(members))

    @property
    def num_rows(self) -> int:
        """How many samples there are."""
        return self.samples.num_rows

    def shards(self, rows_per_shard: int) -> list[ShardPlan]:
        """Cut the plan into shards: consecutive places of one split and bucket, a folder each."""
        counts = self.samples.group_by(["split", "bucket"]).aggregate([([], "count_all")])
        sizes = {(row["split"], row["bucket"]): row["count_all"] for row in counts.to_pylist()}
        shards, first = [], 0
        for split, bucket in sorted(sizes, key=lambda key: (SPLITS.index(key[0]), key[1])):
            end = first + sizes[split, bucket]
            for number, start in enumerate(range(first, end, rows_per_shard)):
                file = f"bucket={bucket}/{split}-{number:05d}.parquet"
                stop = min(start + rows_per_shard, end)
                shards.append(ShardPlan(file, split, bucket, start, stop))
            first = end
        return shards

    def table(self, start: int = 0, stop: int | None = None) -> pa.Table:
        """The samples of some places.

        Returns:
            A table with ``PLAN_SCHEMA``.
        """
        rows = self._rows[start:stop]
        columns = {
            name: values
            for name, values in zip(self.samples.column_names, self.samples.columns, strict=True)
            if name in PLAN_SCHEMA.names
        }
        part = pa.table(columns).take(rows)
        relatives = self.samples["relatives"].take(rows).combine_chunks()
        starts = np.concatenate([[0], np.cumsum(relatives.value_lengths().to_numpy())])
        groups = {
            "mismatched": (
                self._mismatched[rows].ravel(),
                np.arange(len(rows) + 1) * self._mismatched.shape[1],
            ),
            "same_palette": (relatives.flatten().to_numpy(zero_copy_only=False), starts),
        }
        for name, (others, offsets) in groups.items():
            for kind, values in (
                ("ids", self.samples["sample_id"].take(others).combine_chunks()),
                ("rows", pa.array(self._row_in_split[others], pa.int32())),
            ):
                lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
                part = part.append_column(f"{name}_{kind}", lists)
        return part.select(PLAN_SCHEMA.names).cast(PLAN_SCHEMA)


def plan_characters(
    config: DataConfig, source: CharactersSource, characters: Sequence[Character]
) -> Plan:
    """Plan one sample per character and round, several characters sharing each palette.

    Args:
        config: The build: size of the pictures, seed, references.
        source: How many palettes, and how many characters share one.
        characters: The character set, both splits.

    Returns:
        The plan: train first, then test, each round by round.

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
            (config.seed, number),
        )
    ]
    bucket = Bucket(config.image_size, config.image_size).name
    members: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        members.setdefault(row["palette_id"], []).append(number)
    for number, row in enumerate(rows):
        row["bucket"] = bucket
        row["relatives"] = [other for other in members[row["palette_id"]] if other != number]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    relatives = pa.array(columns.pop("relatives"), pa.list_(pa.int32()))
    typed = {name: pa.array(values, _type_of(name)) for name, values in columns.items()}
    return Plan(pa.table(typed | {"relatives": relatives}), config)


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
    return [
        {
            "sample_id": f"{character.character_id}-{name}",
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
        }
        for character in characters
    ]


def _type_of(name: str) -> pa.DataType | None:
    return PLAN_SCHEMA.field(name).type if name in PLAN_SCHEMA.names else None


def _sorted_places(column: pa.ChunkedArray, key: Callable[[str], Any] | None = None) -> np.ndarray:
    """Of every value its place among the sorted different ones."""
    values = column.combine_chunks()
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode()
    names = values.dictionary.to_pylist()
    ordered = sorted(names, key=key)
    places = np.array([ordered.index(name) for name in names], np.int32)
    return places[values.indices.to_numpy(zero_copy_only=False)]


def _to_hex(colour: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in _to_bytes(colour))


def _to_bytes(colour: tuple[float, float, float]) -> tuple[int, ...]:
    return tuple(round(255 * channel) for channel in colour)


def _from_hex(text: str) -> tuple[float, float, float]:
    red, green, blue = (int(text[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return red, green, blue
