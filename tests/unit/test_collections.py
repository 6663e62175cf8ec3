"""Every layout as a list of items: what belongs together, and what is left out and why."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nurie.config.data import PicturesSource, TagFilter
from nurie_pipelines.data.collections import Item, iterate, list_items
from nurie_pipelines.data.collections.storage import StorageError, read_bytes


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def make_tar(path: Path, members: dict[str, str]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))


def make_zip(path: Path, members: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)


def items_of(kind: str, path: Path | str, **settings) -> dict[str, Item]:
    source = PicturesSource(kind=kind, path=str(path), **settings)
    return {item.name: item for item in iterate(list_items(source))}


def test_names_that_are_not_utf8_are_problems_that_can_be_told_apart(tmp_path: Path) -> None:
    for byte in (b"\xe8", b"\xe9"):
        (tmp_path / os.fsdecode(b"caf" + byte + b".png")).touch()
    found = items_of("folder", tmp_path)
    assert list(found) == [r"caf\xe8.png", r"caf\xe9.png"]
    assert all(item.problem.startswith("bad_name") for item in found.values())


def test_a_plain_folder_is_searched_deeply(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": "", "sub/b.JPG": "", "sub/.hidden/c.png": "", "notes.txt": ""})
    assert list(items_of("folder", tmp_path)) == ["a.png", "sub/b.JPG"]
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        items_of("folder", tmp_path / "nowhere")


def test_any_file_system_works() -> None:
    with fsspec.open("memory://pictures/sub/a.png", "wb") as file:
        file.write(b"bytes")  # type: ignore[union-attr]
    (item,) = items_of("folder", "memory://pictures").values()
    assert item.name == "sub/a.png"
    assert read_bytes("memory://pictures", item.picture) == b"bytes"


def test_imagefolder_reads_captions_companions_and_splits(tmp_path: Path) -> None:
    lines = [
        {"file_name": "a.png", "text": "1girl, red hair", "sketch_file_name": "lines/a.png"},
        {"file_name": "gone.png"},
    ]
    write(
        tmp_path,
        {
            "train/a.png": "",
            "train/lines/a.png": "",
            "train/metadata.jsonl": "\n".join(map(json.dumps, lines)),
            "validation/b.png": "",
            "validation/metadata.csv": "file_name,text,mask_file_name\nb.png,x,m.png\n",
            "validation/m.png": "",
        },
    )
    found = items_of("imagefolder", tmp_path)
    assert found.keys() == {"train/a.png", "train/gone.png", "validation/b.png"}
    first = found["train/a.png"]
    assert (first.tags, first.sketch) == (("1girl", "red hair"), "train/lines/a.png")
    assert first.split == "train"
    assert found["validation/b.png"].mask == "validation/m.png"
    assert found["validation/b.png"].split == "test"
    assert found["train/gone.png"].problem.startswith("missing")


def test_broken_lists_name_the_line(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": "", "metadata.jsonl": '{"file_name": "a.png"}\nnonsense'})
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 2: not JSON"):
        items_of("imagefolder", tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"text": "x"}')
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 1: no file_name"):
        items_of("imagefolder", tmp_path)
    (tmp_path / "metadata.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        items_of("imagefolder", tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    outside = tmp_path.with_name("outside.jsonl")
    outside.write_text('{"file_name": "a.png"}')
    (tmp_path / "metadata.jsonl").symlink_to(outside)
    with pytest.raises(StorageError, match="leads out of the folder"):
        items_of("imagefolder", tmp_path)


def test_webdataset_joins_members_up_to_the_first_dot(tmp_path: Path) -> None:
    members = {
        "0001.color.png": "colour",
        "0001.sketch.png": "lines",
        "0001.mask.png": "mask",
        "0001.json": json.dumps({"tags": ["a", "b"]}),
        "0002.jpg": "other",
        "0002.txt": "c, d",
        "0003.json": "{}",
        "../0004.png": "bad",
        "0005.png": "x",
        "0005.json": "no",
    }
    make_tar(tmp_path / "set-000000.tar", members)
    found = items_of("webdataset", tmp_path)
    first = found["set-000000.tar/0001"]
    assert first.sketch is not None and first.mask is not None
    parts = [read_bytes(str(tmp_path), part) for part in (first.picture, first.sketch, first.mask)]
    assert parts == [b"colour", b"lines", b"mask"]
    assert first.tags == ("a", "b")
    assert found["set-000000.tar/0002"].tags == ("c", "d")
    problems = {name: item.problem.split(":")[0] for name, item in found.items() if item.problem}
    assert problems == {
        "set-000000.tar/0003": "no_picture",
        "set-000000.tar/../0004": "unsafe_name",
        "set-000000.tar/0005": "bad_metadata",
    }
    (tmp_path / "cut.tar").write_bytes(b"not a tar")
    with pytest.raises(ValueError, match=r"cut\.tar: not a readable uncompressed tar"):
        items_of("webdataset", tmp_path)


INDEX = {
    "0001/a.png": {"aesthetic_score": 6.5, "exist_sketch": True, "tags": ["x"]},
    "0001/b.png": {"aesthetic_score": 4.0, "exist_sketch": True},
    "0001/c.png": {"exist_sketch": False},
    "0001/d.png": {},
}


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_colorizediffusion_zips_and_index(tmp_path: Path, form: str) -> None:
    names = [f"0001/{letter}.png" for letter in "abcde"] + ["../evil.png"]
    make_zip(tmp_path / "color" / "0001.zip", dict.fromkeys(names, "colour"))
    make_zip(tmp_path / "sketch" / "0001.zip", dict.fromkeys(names[:3], "lines"))
    make_zip(tmp_path / "mask" / "0001.zip", {names[0]: "mask"})
    index = tmp_path / "data_index" / f"set.{form}"
    index.parent.mkdir()
    if form == "json":
        index.write_text(json.dumps(INDEX))
    else:
        rows = [{"path": name, **entry} for name, entry in INDEX.items()]
        pq.write_table(pa.Table.from_pylist(rows), index)
    found = items_of("colorizediffusion", tmp_path, min_aesthetic_score=5)
    good = found["0001:0001/a.png"]
    assert good.sketch is not None and good.mask is not None
    assert read_bytes(str(tmp_path), good.sketch) == b"lines"
    assert read_bytes(str(tmp_path), good.mask) == b"mask"
    problems = {name[-5]: item.problem.split(":")[0] for name, item in found.items()}
    assert problems == {
        "a": "",
        "b": "aesthetic_score",
        "c": "missing_sketch",
        "d": "missing_sketch",
        "e": "not_in_index",
        "l": "unsafe_name",
    }


def test_kohya_captions_and_toml(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "set/a.png": "",
            "set/a.txt": "blue eyes, hat",
            "set/b.png": "",
            "lines/a.png": "",
            "data.toml": "[general]\ncaption_extension = '.txt'\n[[datasets]]\n"
            "[[datasets.subsets]]\nimage_dir = 'set'\nconditioning_data_dir = 'lines'\n",
        },
    )
    assert items_of("kohya", tmp_path / "set")["a.png"].tags == ("blue eyes", "hat")
    found = items_of("kohya", tmp_path / "data.toml")
    assert found["set/a.png"].sketch == "lines/a.png"
    assert found["set/a.png"].tags == ("blue eyes", "hat")
    assert found["set/b.png"].problem.startswith("missing_sketch")


def test_a_metadata_file_filters_and_groups(tmp_path: Path) -> None:
    entries = [
        {"id": 1, "rating": "g", "score": 9, "tag_string": "1girl hat"},
        {"id": 2, "rating": "e", "score": 9, "tag_string": "1girl"},
        {"id": 3, "rating": "s", "score": 0, "tag_string": "1girl"},
        {"id": 4, "rating": "g", "score": 9, "tag_string": "comic"},
        {"md5": "abc", "rating": "g", "score": 9, "parent_id": 1, "tags": [{"name": "1girl"}]},
        {"id": 6, "rating": "g", "score": 9, "tag_string": "1girl", "is_deleted": True},
        {"id": 8, "rating": "g", "score": "many", "tag_string": "1girl"},
        {"id": 9, "rating": "g", "score": "2", "tags": [{"name": "1girl"}, {"id": 3}]},
    ]
    names = ["1", "2", "3", "4", "abc", "6", "7", "8", "9"]
    write(tmp_path, {f"{name}.png": "" for name in names})
    metadata = tmp_path / "posts.jsonl"
    metadata.write_text("\n".join(map(json.dumps, entries)))
    wanted = TagFilter(min_score=1, required_tags=("1girl",))
    found = items_of("folder", tmp_path, metadata=str(metadata), filter=wanted)
    problems = {name[:-4]: item.problem.split(":")[0] for name, item in found.items()}
    assert problems == {
        "1": "",
        "2": "rating",
        "3": "score",
        "4": "tags",
        "abc": "",
        "6": "is_deleted",
        "7": "not_in_metadata",
        "8": "bad_metadata",
        "9": "",
    }
    assert found["1.png"].group == found["abc.png"].group
    assert found["1.png"].tags == ("1girl", "hat")


def test_wrong_fields_of_an_index_are_the_problem_of_their_picture(tmp_path: Path) -> None:
    entries = {
        "a": {"aesthetic_score": "6.5"},
        "b": {"aesthetic_score": 7},
        "c": {"aesthetic_score": None},
        "d": {"aesthetic_score": "good"},
        "e": {"aesthetic_score": True},
        "f": {"aesthetic_score": float("nan")},
        "g": {"tags": 5},
        "h": ["x"],
        "i": {"tags": ["\ud800"]},
    }
    members = {f"0001/{letter}.png": "x" for letter in entries}
    for part in ("color", "sketch"):
        make_zip(tmp_path / part / "0001.zip", members)
    index = {f"0001/{letter}.png": entry for letter, entry in entries.items()}
    (tmp_path / "image_list.json").write_text(json.dumps(index))
    found = items_of("colorizediffusion", tmp_path)
    by_letter = {name[-5]: item for name, item in found.items()}
    scores = [by_letter[letter].aesthetic_score for letter in "abc"]
    assert scores == [6.5, 7.0, None]
    problems = {letter: item.problem for letter, item in by_letter.items()}
    assert [problems[letter] for letter in "abc"] == ["", "", ""]
    assert problems["d"] == "bad_metadata: aesthetic_score 'good' is not a number"
    assert all(problems[letter].startswith("bad_metadata: ") for letter in "efghi")


def test_two_pictures_of_one_name_are_an_error(tmp_path: Path) -> None:
    make_zip(tmp_path / "color" / "0001.zip", {"0001/a.png": "x"})
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(tmp_path / "color" / "0001.zip", "a") as archive,
    ):
        archive.writestr("0001/a.png", "y")
    with pytest.raises(ValueError, match="2 pictures are named '0001:0001/a.png'"):
        items_of("colorizediffusion", tmp_path)


def test_nothing_outside_the_root_is_read(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {"a.png": "inside"})
    write(tmp_path, {"secret.png": "outside"})
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    for locator in ("link.png", "../secret.png"):
        with pytest.raises(StorageError, match="leads out of the folder"):
            read_bytes(str(root), locator)


def test_bombs_are_not_unfolded(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * 2_000_000)
    with pytest.raises(StorageError, match="too_large"):
        read_bytes(str(tmp_path), "z.zip!/a.png", limit=1_000_000)
    (tmp_path / "big.png").write_bytes(b"\0" * 2000)
    with pytest.raises(StorageError, match="too_large: 2000 bytes"):
        read_bytes(str(tmp_path), "big.png", limit=1000)


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match="folder has no such score"):
        PicturesSource(kind="folder", path="x", min_aesthetic_score=5)
    with pytest.raises(ValueError, match="filter: needs metadata"):
        PicturesSource(kind="folder", path="x", filter=TagFilter())
