"""Configuration files: merging, overrides, and errors that show the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from nurie.config.loader import ConfigError, load_config, read_yaml
from nurie.config.model import ModelConfig
from nurie.config.train import TrainConfig

TRAIN = """
kind: train
name: t
model: {name: m}
components: parts
data: {shards: shards}
stages:
  - {kind: backbone, steps: 10}
  - {kind: background, steps: 5}
output: out
"""


@pytest.fixture
def write(tmp_path):
    def write_file(text: str, name: str = "a.yaml") -> Path:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return file

    return write_file


def problems_of(file: Path, **overrides: object) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        load_config(file, {name.replace("__", "."): value for name, value in overrides.items()})
    return caught.value.problems


def test_loads_by_kind_and_makes_paths_absolute(write):
    config = load_config(write(TRAIN))
    assert isinstance(config, TrainConfig)
    assert config.output == Path.cwd() / "out"


def test_extends_merges_deeply_and_lists_replace(write):
    write("a: {x: 1, y: {p: 1, q: 2}}\nlist: [1, 2]\n", "base.yaml")
    merged = read_yaml(write("extends: base.yaml\na: {y: {q: 3}}\nlist: [4]\n"))
    assert merged == {"a": {"x": 1, "y": {"p": 1, "q": 3}}, "list": [4]}


def test_extends_changes_entries_of_a_list_by_kind_or_number(write):
    write("list: [{kind: a, x: 1, y: 1}, {kind: b, x: 1}]\n", "base.yaml")
    merged = read_yaml(write("extends: base.yaml\nlist: {a: {x: 2}, 1: {x: 3}}\n"))
    assert merged == {"list": [{"kind": "a", "x": 2, "y": 1}, {"kind": "b", "x": 3}]}


def test_extends_changes_an_entry_that_is_not_there(write):
    write("list: [{kind: a}]\n", "base.yaml")
    assert problems_of(write("extends: base.yaml\nlist: {c: {x: 2}}\n")) == [
        ("list.c", "no entry 'c'; there are: a, 0..0")
    ]


def test_extends_inside_a_section_is_relative_to_its_own_file(write):
    write("width: 1\n", "sub.yaml")
    write("section: {extends: ../sub.yaml, depth: 2}\n", "folder/base.yaml")
    assert read_yaml(write("extends: folder/base.yaml\n")) == {"section": {"width": 1, "depth": 2}}


def test_extends_in_a_circle(write):
    write("extends: a.yaml\n", "b.yaml")
    assert "extend each other" in problems_of(write("extends: b.yaml\n"))[0][1]


def test_a_file_extended_twice_is_no_circle(write):
    write("v: 1\n", "leaf.yaml")
    twice = write("one: {extends: leaf.yaml}\ntwo: {extends: leaf.yaml}\n")
    assert read_yaml(twice) == {"one": {"v": 1}, "two": {"v": 1}}


def test_missing_base_names_both_files(write):
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file .*a\.yaml"):
        load_config(write("extends: gone.yaml\n"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2\n", "'a' is given twice"),
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "found list"),
        ("", "found NoneType"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_refuses_what_is_no_mapping(write, text, words):
    assert words in problems_of(write(text))[0][1]


def test_unknown_kind_lists_the_kinds(write):
    path, message = problems_of(write("kind: trian\n"))[0]
    assert path == "kind"
    assert "train" in message


def test_a_typo_names_the_path_the_match_and_what_is_allowed(write):
    file = write(TRAIN)
    path, message = problems_of(file, stages__backbone__gram={"wieght": 1})[0]
    assert path == "stages.0.gram.wieght"
    assert "did you mean weight?" in message
    assert "ramp_fraction" in message
    with pytest.raises(ConfigError, match=str(file)):
        load_config(file, {"sed": 1})


def test_all_problems_are_reported_at_once(write):
    paths = [path for path, _ in problems_of(write(TRAIN), seed=-1, engine__num_workers=0)]
    assert paths == ["engine.num_workers", "seed"]


def test_a_wrong_value_is_shown(write):
    assert problems_of(write(TRAIN), engine__precision="fp64") == [
        ("engine.precision", "Input should be 'fp32', 'bf16' or 'fp16', got 'fp64'")
    ]


def test_a_missing_setting_is_named(write):
    assert problems_of(write(TRAIN.replace("name: t\n", ""))) == [
        ("name", "missing; this setting has no default")
    ]


def test_a_relation_between_settings_is_checked(write):
    ((_, message),) = problems_of(write(TRAIN), stages__background__batch_size=1)
    assert message.startswith("stages.background.batch_size 1 must be a multiple")


def test_overrides_by_number_and_by_kind(write):
    config = load_config(write(TRAIN), {"stages.0.steps": 3, "stages.background.steps": 4})
    assert isinstance(config, TrainConfig)
    assert [stage.steps for stage in config.stages] == [3, 4]


def test_an_override_opens_a_section_the_file_leaves_out(write):
    config = load_config(write("kind: model\nname: m\n"), {"unet.head_dim": 32})
    assert isinstance(config, ModelConfig)
    assert config.unet.head_dim == 32


def test_an_override_of_a_list_entry_that_is_not_there(write):
    ((path, message),) = problems_of(write(TRAIN), stages__foreground__steps=3)
    assert path == "stages.foreground.steps"
    assert "backbone, background, 0..1" in message


def test_an_override_below_a_single_value(write):
    assert "single value" in problems_of(write(TRAIN), name__x=1)[0][1]


def test_the_file_on_disk_is_never_changed(write):
    file = write(TRAIN)
    load_config(file, {"seed": 3})
    assert file.read_text() == TRAIN
