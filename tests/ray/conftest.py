"""Small data for training runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from nurie.config.data import CharactersSource, DataConfig
from nurie_pipelines.data.build import build_dataset
from tests.tiny import tiny_components


@pytest.fixture(scope="module")
def prepared(ray_session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny components and a small data set."""
    folder = tmp_path_factory.mktemp("train")
    tiny_components(folder / "components")
    build_dataset(
        DataConfig(
            name="t",
            source=CharactersSource(palettes_per_character=2, max_characters=12),
            output=folder / "shards",
            image_size=64,
            vae=folder / "components" / "vae",
        )
    )
    return folder
