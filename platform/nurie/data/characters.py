"""The built-in character set: exact part labels and ink lines of parametrised characters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from nurie.data.assets import find_assets

ROLES: tuple[str, ...] = (
    "background",
    "hair",
    "skin",
    "eyes",
    "sclera",
    "eyebrows",
    "lips",
    "teeth",
    "throat",
    "tongue",
    "blush",
    "freckles",
    "glasses",
    "earrings",
    "accessory",
    "leaf",
    "highlight",
)
"""Colour roles of every built-in character; a role's place here is its index in the label maps."""

STYLES: tuple[str, ...] = ("lorelei", "adventurer")
Split = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class Character:
    """One drawing without colours: which role every pixel has, and where the ink lies.

    Attributes:
        character_id: Unique name such as ``lorelei-0007``.
        style: One of :data:`STYLES`.
        split: ``train`` or ``test``; no part variant held out for test occurs in train.
        roles: Label index to role name; index 0 is ``background``.
        labels: Role index of every pixel, uint8 [H, W].
        ink_levels: Ink coverage in 16 steps (0, 17, ..., 255), uint8 [H, W].
        attributes: Part variants and yes/no facts, known exactly.
    """

    character_id: str
    style: str
    split: Split
    roles: tuple[str, ...]
    labels: np.ndarray
    ink_levels: np.ndarray
    attributes: dict[str, str | bool]

    @property
    def ink(self) -> np.ndarray:
        """Ink coverage, float32 [H, W], 0 (none) to 1 (solid)."""
        return self.ink_levels.astype(np.float32) / np.float32(255)


def load_characters(path: str | Path | None = None) -> list[Character]:
    """Load the character set.

    Args:
        path: A Parquet file, a folder of them, or None for the built-in set.

    Returns:
        The characters, ordered by style file and character id.

    Raises:
        FileNotFoundError: If the path holds no Parquet file.
    """
    place = find_assets("characters") if path is None else Path(path)
    files = sorted(place.glob("*.parquet")) if place.is_dir() else [place]
    if not files or not all(file.is_file() for file in files):
        raise FileNotFoundError(f"no character Parquet file at {place}")
    characters = [character for file in files for character in _read(file)]
    return sorted(characters, key=lambda character: character.character_id)


def _read(file: Path) -> list[Character]:
    table = pq.read_table(file, use_threads=False)
    return [_character(row) for row in table.to_pylist()]


def _character(row: dict[str, Any]) -> Character:
    shape = (row["height"], row["width"])
    return Character(
        character_id=row["character_id"],
        style=row["style"],
        split=row["split"],
        roles=tuple(row["roles"]),
        labels=np.frombuffer(row["labels"], np.uint8).reshape(shape),
        ink_levels=np.frombuffer(row["ink"], np.uint8).reshape(shape),
        attributes=json.loads(row["attributes"]),
    )
