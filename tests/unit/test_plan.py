"""The plan of a build: palettes, groups, references, shards."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from nurie.config.data import CharactersSource, DataConfig
from nurie.data.characters import load_characters
from nurie.data.plan import Plan, palette_from_json, palette_to_json, plan_characters
from nurie.data.schema import PLAN_SCHEMA

SOURCE = CharactersSource(palettes_per_character=3, characters_per_palette=4, max_characters=22)


def plan(characters, source: CharactersSource = SOURCE, seed: int = 5, rounds: int = 2) -> Plan:
    config = DataConfig(
        name="t",
        source=source,
        output=Path("t"),
        image_size=64,
        seed=seed,
        mismatch_rounds=rounds,
    )
    return plan_characters(config, source, characters)


@pytest.fixture(scope="module")
def characters():
    return load_characters()


@pytest.fixture(scope="module")
def rows(characters):
    return plan(characters, rounds=4).table().to_pylist()


def test_every_character_appears_once_per_palette_round(rows):
    assert len(rows) == len({row["sample_id"] for row in rows}) == 2 * 22 * 3
    assert set(Counter(row["character_id"] for row in rows).values()) == {3}


def test_palettes_are_shared_by_few_and_never_by_both_splits(rows):
    sizes = Counter(row["palette_id"] for row in rows)
    assert set(sizes.values()) <= {4, 5}
    splits = {(row["palette_id"], row["split"]) for row in rows}
    assert len(splits) == len(sizes)
    colours = {row["palette_id"]: row["palette"] for row in rows}
    assert all(colours[row["palette_id"]] == row["palette"] for row in rows)
    assert len(set(colours.values())) == len(colours)


def test_references_keep_their_promises(rows):
    by_id = {row["sample_id"]: row for row in rows}
    for row in rows:
        assert len(row["mismatched_ids"]) == 4
        for other in (by_id[i] for i in row["mismatched_ids"]):
            assert other["character_id"] != row["character_id"]
            assert other["palette_id"] != row["palette_id"]
            assert other["split"] == row["split"]
        relatives = [by_id[i] for i in row["same_palette_ids"]]
        assert len(relatives) >= 3
        for other in relatives:
            assert other["character_id"] != row["character_id"]
            assert other["palette_id"] == row["palette_id"]


def test_plan_is_a_function_of_the_seed(characters):
    first, again = (plan(characters).table() for _ in "ab")
    assert first.equals(again)
    assert first.schema.equals(PLAN_SCHEMA)
    assert not first.equals(plan(characters, seed=6).table())


def test_impossible_plan_names_the_way_out(characters):
    source = CharactersSource(max_characters=2, palettes_per_character=1)
    with pytest.raises(ValueError, match="lower characters_per_palette"):
        plan(characters, source)


def test_shards_cover_the_plan_in_order(characters):
    planned = plan(characters)
    shards = planned.shards(rows_per_shard=50)
    assert [shard.file for shard in shards][:2] == [
        "bucket=64x64/train-00000.parquet",
        "bucket=64x64/train-00001.parquet",
    ]
    assert [shard.num_rows for shard in shards] == [50, 16, 50, 16]
    parts = [planned.table(shard.start, shard.stop) for shard in shards]
    joined = [i for part in parts for i in part["sample_id"].to_pylist()]
    assert joined == planned.table()["sample_id"].to_pylist()
    for shard, part in zip(shards, parts, strict=True):
        assert part["split"].unique().to_pylist() == [shard.split]


def test_references_by_id_and_by_row_are_the_same(rows):
    for split in ("train", "test"):
        members = [row for row in rows if row["split"] == split]
        for row in members:
            for kind in ("mismatched", "same_palette"):
                named = [members[place]["sample_id"] for place in row[f"{kind}_rows"]]
                assert named == row[f"{kind}_ids"]


def test_stored_palettes_are_exact_to_8_bits():
    text = palette_to_json({"hair": (1.0, 0.5, 0.0), "ink": (0.1, 0.2, 0.3)})
    assert json.loads(text) == {"hair": "#ff8000", "ink": "#1a334c"}
    assert palette_to_json(palette_from_json(text)) == text
