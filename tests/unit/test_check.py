"""What opening a picture finds out, without Ray."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from nurie.config.data import DataConfig, PicturesSource, TaggerConfig
from nurie.data.assets import find_assets
from nurie.data.characters import load_characters
from nurie.data.palettes import random_palette
from nurie.data.recolour import recolour
from nurie.data.tagger import Tagger
from nurie.data.tags import tags_for
from nurie.inference.images import decode_image
from nurie_pipelines.data import check as module
from nurie_pipelines.data.check import Scorers, check_items, check_rows, to_check
from nurie_pipelines.data.collections import Item, as_table, list_items
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


def test_what_is_found_is_put_beside_the_items(
    drawn: tuple[Path, list[set[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In waves, whose rows come back in any order; an item with a problem is not opened."""
    folder, _ = drawn
    source = PicturesSource(kind="kohya", path=str(folder), tagger=TAGGER)
    config = DataConfig(name="t", source=source, output=folder)
    names = [f"{number}.png" for number in range(6)]
    listed = [Item(name, name, tags=("x",) if name == "4.png" else ()) for name in names]
    listed += [Item("5a.png", "gone.png"), Item("3a.png", "3.png", problem="rating: e")]
    items, waves = as_table(listed), []

    def here(config, source, items, numbers, tell) -> pa.Table:
        waves.append(len(numbers))
        tell(len(numbers))
        rows = to_check(items, numbers[::-1])
        return check_rows(rows, source, Scorers.of(source))

    monkeypatch.setattr(module, "_check_in_ray", here)
    monkeypatch.setattr(module, "ITEMS_PER_WAVE", 3)
    told: list[int] = []
    checked = {
        row["name"]: row for row in check_items(config, source, items, told.append).to_pylist()
    }
    assert waves == told == [3, 3, 1]
    assert list(checked) == sorted([*names, "5a.png", "3a.png"])
    assert checked["4.png"]["tags"] == ["x"]
    assert len(checked["2.png"]["tags"]) > 2
    assert checked["5.png"]["sha256"] == hashlib.sha256((folder / "5.png").read_bytes()).hexdigest()
    assert checked["5a.png"]["problem"].startswith("unreadable")
    refused = checked["3a.png"]
    assert (refused["problem"], refused["opened"], refused["sha256"]) == ("rating: e", False, None)
    nothing = as_table([listed[-1]])
    assert check_items(config, source, nothing).to_pylist()[0]["problem"] == "rating: e"


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
