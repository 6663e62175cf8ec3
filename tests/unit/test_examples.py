"""Bundled examples: Sylvie and the unseen character pairs."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from nurie.data.assets import find_assets
from nurie.data.characters import load_characters
from nurie.data.examples import (
    composite,
    crop_bust,
    example_pairs,
    load_backgrounds,
    load_sylvie,
)
from nurie.data.recolour import recolour


def test_pairs_are_unseen_characters_with_exact_truth() -> None:
    by_id = {character.character_id: character for character in load_characters()}
    pairs = example_pairs(6, seed=1)
    assert len({pair.sketch_id for pair in pairs}) == 6
    for pair in pairs:
        sketched, reference = by_id[pair.sketch_id], by_id[pair.reference_id]
        assert sketched.split == reference.split == "test"
        assert sketched.attributes["hair"] != reference.attributes["hair"]
        assert np.array_equal(pair.truth, recolour(sketched, pair.palette).image)
        assert np.array_equal(pair.reference, recolour(reference, pair.palette).image)
        assert pair.sketch.dtype == np.uint8
        assert np.median(pair.sketch) > 240 > pair.sketch.min()


def test_pairs_follow_the_seed() -> None:
    first, again, other = (example_pairs(2, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first[1].sketch, again[1].sketch)
    assert [p.sketch_id for p in first] != [p.sketch_id for p in other]


@pytest.mark.parametrize("n", [0, 10_000])
def test_impossible_number_of_pairs_is_named(n: int) -> None:
    with pytest.raises(ValueError, match=f"got {n}"):
        example_pairs(n, seed=0)


def test_sylvie_has_two_outfits_of_four_expressions() -> None:
    sprites = load_sylvie()
    assert len(sprites) == 8
    assert sum(name.startswith("green_") for name in sprites) == 4
    for sprite in sprites.values():
        assert sprite.shape[0] == 352
        assert sprite.shape[2] == 4
    backgrounds = load_backgrounds()
    assert set(backgrounds) == {"uni", "meadow"}
    assert all(picture.shape == (270, 480, 3) for picture in backgrounds.values())


def test_bust_holds_the_head_and_lies_over_any_background() -> None:
    sprite = load_sylvie()["green_smile"]
    bust = crop_bust(sprite)
    assert bust.shape[0] == bust.shape[1] < sprite.shape[0]
    assert 0.3 < (bust[..., 3] > 127).mean() < 0.9
    outside = bust[..., 3] == 0
    assert (composite(bust, None)[outside] == 255).all()
    background = np.full((20, 300, 3), (10, 200, 30), np.uint8)
    assert (composite(bust, background)[outside] == (10, 200, 30)).all()


def test_empty_sprite_is_refused() -> None:
    with pytest.raises(ValueError, match="visible RGBA"):
        crop_bust(np.zeros((10, 10, 4), np.uint8))


def test_ready_files_are_there_with_their_licence() -> None:
    folder = find_assets("examples")
    for name in ("sylvie_sketch.png", "sylvie_reference.png"):
        assert Image.open(folder / name).size == (384, 384)
    notice = (folder / "sylvie" / "LICENSE").read_text()
    assert "Permission is hereby granted, free of charge" in notice
    bundled = [f for f in folder.rglob("*") if f.is_file() and "sylvie" in str(f)]
    assert sum(file.stat().st_size for file in bundled) < 1_200_000
