"""P2: damaged copies of our own configuration files load, or say what is wrong with which key."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nurie.config.loader import ConfigError, load_config, read_yaml

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").glob("*/*.yaml"))
MUTATIONS = 20
"""Damaged copies of every file."""
WRONG = (
    None,
    -1,
    0,
    1e400,
    float("nan"),
    "",
    "x" * 10_000,
    True,
    [],
    {},
    [[]],
    {"": {}},
    "\0",
    "é",
)


def places(values: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values in nested mappings and lists."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def damaged(values: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """A copy with one to three values replaced, misspelt, doubled or gone."""
    values = copy.deepcopy(values)
    for _ in range(chance.randint(1, 3)):
        every = list(places(values))
        if not every:
            return values
        *above, key = chance.choice(every)
        parent: Any = values
        for each in above:
            parent = parent[each]
        match chance.choice(("wrong", "gone", "misspelt", "moved")):
            case "wrong":
                parent[key] = copy.deepcopy(chance.choice(WRONG))
            case "gone":
                del parent[key]
            case "misspelt" if isinstance(parent, dict):
                parent[f"{key}s"] = parent.pop(key)
            case _:
                values[str(chance.randrange(100))] = copy.deepcopy(parent[key])
    return values


def error_of(path: Path) -> ConfigError | None:
    try:
        load_config(path)
    except ConfigError as error:
        return error
    return None


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_damage_is_named(file: Path, tmp_path: Path) -> None:
    chance, values, refused = random.Random(file.name), read_yaml(file), 0
    for number in range(MUTATIONS):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(damaged(values, chance)))
        error = error_of(path)
        refused += error is not None
        if error is not None:
            assert str(path) in str(error)
            assert all(message for _, message in error.problems)
    assert refused > MUTATIONS / 2
