"""What opening a picture finds out, without Ray."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from nurie.config.data import PicturesSource, TaggerConfig
from nurie.data.assets import find_assets
from nurie.data.characters import load_characters
from nurie.data.palettes import random_palette
from nurie.data.recolour import recolour
from nurie.data.tagger import Tagger
from nurie.data.tags import tags_for
from nurie.inference.images import decode_image
from nurie_pipelines.data.check import Scorers, check_rows, to_check
from nurie_pipelines.data.collections import list_items
from nurie_pipelines.data.sources import model_digest

TAGGER = TaggerConfig(path=Path(__file__).parents[2] / "assets" / "nano" / "tagger")


def check(source: PicturesSource) -> list[dict]:
    items = list_items(source)
    rows = to_check(items, np.arange(items.num_rows))
    return check_rows(rows, source, Scorers.of(source)).to_pylist()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[set[str]]]:
    """A kohya folder of six characters, the first with a caption, and what is known of each."""
    folder, tags = tmp_path_factory.mktemp("drawn"), []
    characters = load_characters(find_assets("characters"))
    for number in range(6):
        rng = np.random.default_rng(number)
        character = characters[7 * number]
        palette = random_palette(rng, character.roles)
        image = recolour(character, palette, 128, rng=rng).image
        cv2.imwrite(str(folder / f"{number}.png"), image[..., ::-1])
        tags.append(set(tags_for(character, palette)))
    (folder / "0.txt").write_text("my own, caption")
    return folder, tags


def test_the_tagger_names_what_has_no_tags(drawn: tuple[Path, list[set[str]]]) -> None:
    folder, known = drawn
    source = PicturesSource(kind="kohya", path=str(folder), tagger=TAGGER)
    found = check(source)
    assert found[0]["tags"] is None  # it has its caption
    tagged = [set(row["tags"]) for row in found[1:]]
    hits = sum(len(tags & truth) for tags, truth in zip(tagged, known[1:], strict=True))
    assert hits >= 0.5 * sum(map(len, known[1:]))
    assert hits >= 0.5 * sum(map(len, tagged))
    image = decode_image((folder / "3.png").read_bytes(), "picture")
    (expected,) = Tagger.from_folder(TAGGER.path).tags(np.asarray(image)[None], 0.35, 0.85)
    assert found[3]["tags"] == list(expected)


def test_thresholds_decide_and_pictures_left_out_are_not_tagged(
    drawn: tuple[Path, list[set[str]]],
) -> None:
    folder, _ = drawn
    strict = TAGGER.model_copy(update={"general_threshold": 1.0})
    for source in (
        PicturesSource(kind="folder", path=str(folder), tagger=strict),
        PicturesSource(kind="folder", path=str(folder), tagger=TAGGER, min_side=200),
        PicturesSource(kind="folder", path=str(folder)),
    ):
        assert not any(row["tags"] for row in check(source))


def test_a_taggers_digest_follows_the_model_and_the_list_of_tags(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TAGGER.path, tmp_path / "tagger"))
    before = model_digest(folder)
    assert before == model_digest(TAGGER.path)
    for name in ("selected_tags.csv", "model.onnx"):
        with open(folder / name, "ab") as file:
            file.write(b"\n")
        assert model_digest(folder) != before
        before = model_digest(folder)
