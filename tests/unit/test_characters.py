"""The built-in characters: split by part variant, consistent maps, small files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from nurie.data.assets import find_assets
from nurie.data.characters import ROLES, STYLES, Character, load_characters
from nurie.data.placement import place_at_random

VARIANT_PARTS = ("hair", "eyes", "mouth")


@pytest.fixture(scope="module")
def characters() -> list[Character]:
    return load_characters()


def test_both_styles_are_there_with_unique_ids(characters: list[Character]) -> None:
    assert len(characters) == 768
    assert len({character.character_id for character in characters}) == 768
    assert {character.style for character in characters} == set(STYLES)


@pytest.mark.parametrize("style", STYLES)
def test_every_test_character_has_a_hair_that_no_train_character_has(
    characters: list[Character], style: str
) -> None:
    hair = {
        split: {c.attributes["hair"] for c in characters if c.style == style and c.split == split}
        for split in ("train", "test")
    }
    assert hair["train"].isdisjoint(hair["test"])
    assert len(hair["test"]) >= 5


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("part", ["eyes", "mouth"])
def test_some_face_variants_occur_in_test_only(
    characters: list[Character], style: str, part: str
) -> None:
    variants = {
        split: {c.attributes[part] for c in characters if c.style == style and c.split == split}
        for split in ("train", "test")
    }
    assert variants["test"] - variants["train"]


def test_maps_agree_in_shape_and_range(characters: list[Character]) -> None:
    for character in characters:
        assert character.labels.shape == character.ink_levels.shape == (256, 256)
        assert character.labels.max() < len(character.roles) == len(ROLES)
        assert set(np.unique(character.ink_levels)) <= set(range(0, 256, 17))
        foreground = (character.labels > 0).mean()
        assert 0.1 < foreground < 0.9, character.character_id


def test_ink_stays_on_or_beside_the_character(characters: list[Character]) -> None:
    for character in characters[::29]:
        outside = (character.labels == 0) & (character.ink > 0.5)
        assert outside.mean() < 0.03


def test_attributes_match_the_drawing(characters: list[Character]) -> None:
    earrings = ROLES.index("earrings")
    for character in characters:
        drawn = (character.labels == earrings).sum() >= 20
        assert character.attributes["has_earrings"] == drawn
        assert character.attributes["has_glasses"] == ("glasses" in character.attributes)


def test_characters_take_less_than_three_megabytes() -> None:
    sizes = [file.stat().st_size for file in find_assets("characters").iterdir()]
    assert 0 < sum(sizes) < 3_000_000


def test_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_characters(tmp_path / "nowhere.parquet")
    with pytest.raises(FileNotFoundError, match="no character Parquet file"):
        load_characters(tmp_path)


def test_placement_moves_labels_and_ink_together(characters: list[Character]) -> None:
    character = characters[0]
    moved = place_at_random(character, np.random.default_rng(1))
    again = place_at_random(character, np.random.default_rng(1))
    assert np.array_equal(moved.labels, again.labels)
    assert not np.array_equal(moved.labels, character.labels)
    assert set(np.unique(moved.labels)) <= set(np.unique(character.labels))
    near_ink = moved.ink_levels[moved.labels == 0] > 127
    assert near_ink.mean() < 0.05
    with pytest.raises(dataclasses.FrozenInstanceError):
        moved.style = "other"  # type: ignore[misc]
