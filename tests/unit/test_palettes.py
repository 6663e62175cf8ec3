"""Palettes, colour names and tags."""

from __future__ import annotations

import numpy as np
import pytest

from nurie.data.characters import ROLES, load_characters
from nurie.data.colour_names import colour_name, skin_name, srgb_to_lab
from nurie.data.palettes import random_palette
from nurie.data.tags import all_tags, tags_for


def test_one_seed_gives_one_palette_whatever_the_roles() -> None:
    everything = random_palette(np.random.default_rng(5), ROLES)
    few = random_palette(np.random.default_rng(5), ("background", "hair"))
    assert few.items() <= everything.items()
    assert everything != random_palette(np.random.default_rng(6), ROLES)


def test_colours_are_in_range_and_every_role_has_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        palette = random_palette(rng, ROLES)
        assert {*ROLES, "ink"} <= palette.keys() <= {*ROLES, "ink", "background2"}
        values = np.array(list(palette.values()))
        assert values.min() >= 0
        assert values.max() <= 1


def test_shares_of_backgrounds_and_variety_of_hair_and_skin() -> None:
    rng = np.random.default_rng(0)
    palettes = [random_palette(rng, ROLES) for _ in range(2000)]
    white = np.mean([p["background"] == (1, 1, 1) and "background2" not in p for p in palettes])
    gradient = np.mean(["background2" in p for p in palettes])
    assert white == pytest.approx(0.20, abs=0.03)
    assert gradient == pytest.approx(0.15, abs=0.03)
    names = {colour_name(p["hair"], of_hair=True) for p in palettes}
    assert {"black", "brown", "blonde", "white", "pink", "blue", "green", "red"} <= names
    skin = [skin_name(p["skin"]) for p in palettes]
    for tone in ("pale_skin", "tan_skin", "brown_skin", "dark_skin"):
        assert skin.count(tone) > 100
    natural = np.mean([name.split("_")[0] in {"pale", "tan", "brown", "dark"} for name in skin])
    assert 0.85 < natural < 0.97


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0, 0, 0), "black"),
        ((1, 1, 1), "white"),
        ((1, 0, 0), "red"),
        ((0, 0, 1), "blue"),
        ((0, 0.6, 0.1), "green"),
        ((0.5, 0.5, 0.5), "grey"),
        ((1, 0.6, 0.75), "pink"),
        ((0.45, 0.27, 0.14), "brown"),
        ((0.92, 0.8, 0.45), "yellow"),
    ],
)
def test_colour_names(rgb: tuple[float, float, float], name: str) -> None:
    assert colour_name(rgb) == name


def test_yellow_hair_is_blonde() -> None:
    assert colour_name((0.92, 0.8, 0.45), of_hair=True) == "blonde"


def test_lab_of_known_colours() -> None:
    lab = srgb_to_lab(np.array([(1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0)]))
    assert lab[0] == pytest.approx((100, 0, 0), abs=0.05)
    assert lab[1] == pytest.approx((0, 0, 0), abs=0.05)
    assert lab[2] == pytest.approx((53.24, 80.09, 67.20), abs=0.05)


def test_tags_follow_palette_and_attributes() -> None:
    characters = load_characters()
    with_glasses = next(c for c in characters if c.attributes["has_glasses"])
    palette = random_palette(np.random.default_rng(0), ROLES)
    palette.pop("background2", None)
    palette |= {"hair": (0.1, 0.2, 0.9), "skin": (0.3, 0.19, 0.13), "background": (0, 0.6, 0.1)}
    tags = tags_for(with_glasses, palette)
    assert {"blue_hair", "dark_skin", "green_background", "glasses"} <= set(tags)


def test_every_tag_is_in_the_vocabulary() -> None:
    vocabulary = set(all_tags())
    rng = np.random.default_rng(0)
    for character in load_characters():
        tags = tags_for(character, random_palette(rng, ROLES))
        assert set(tags) <= vocabulary
        assert tags == sorted(set(tags))
