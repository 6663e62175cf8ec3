"""From a plan row to pictures: recolour or read, draw the sketches, encode."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from nurie.config.data import CharactersSource, DataConfig
from nurie.data.characters import Character, load_characters
from nurie.data.lines import make_sketch, sketch_from_image
from nurie.data.pixels import encode_pixels
from nurie.data.placement import place_at_random
from nurie.data.plan import palette_from_json, sample_rng
from nurie.data.recolour import recolour
from nurie.data.schema import PICTURE_FIELDS, Row
from nurie_pipelines.data.pictures import read_picture

GIVEN_STYLE = "given"
"""Style of the sketches that a collection brings along."""


def render_shard(rows: pa.Table, config: DataConfig, folder: str) -> pa.Table:
    """Add the picture columns to the plan rows of one shard.

    Args:
        rows: Plan rows; further columns are kept.
        config: The build's configuration.
        folder: Where the source's files are (a worker's current directory is another).

    Returns:
        The same rows with the ``PICTURE_FIELDS``.
    """
    cv2.setNumThreads(1)  # Ray runs one task per core already
    source = config.source
    if isinstance(source, CharactersSource):
        pictures = [_draw_character(row, config, source, Path(folder)) for row in rows.to_pylist()]
    else:
        pictures = [_draw_file(row, config, folder) for row in rows.to_pylist()]
    for field in PICTURE_FIELDS:
        values = pa.array([picture[field.name] for picture in pictures], field.type)
        rows = rows.append_column(field, values)
    return rows


def _draw_character(row: Row, config: DataConfig, source: CharactersSource, folder: Path) -> Row:
    sample_id, size = row["sample_id"], config.image_size
    character = _characters(folder)[row["character_id"]]
    rng = sample_rng(config.seed, sample_id, "picture")
    if row["split"] == "train" and rng.random() < source.placement_probability:
        character = place_at_random(character, rng)
    rendered = recolour(
        character,
        palette_from_json(row["palette"]),
        size,
        shading_probability=source.shading_probability,
        rng=rng,
    )
    sketches = [
        make_sketch(rendered, style, sample_rng(config.seed, sample_id, style))
        for style in config.line_styles
    ]
    pictures = _encoded(rendered.image, rendered.mask, sketches, list(config.line_styles))
    return pictures | {"labels": encode_pixels(rendered.labels), "original_area": size * size}


def _draw_file(row: Row, config: DataConfig, folder: str) -> Row:
    picture = read_picture(folder, row)
    sketches = [
        sketch_from_image(picture.image, style, sample_rng(config.seed, row["sample_id"], style))
        for style in config.line_styles
    ]
    styles = list(config.line_styles)
    if picture.sketch is not None:
        sketches, styles = [picture.sketch / np.float32(255), *sketches], [GIVEN_STYLE, *styles]
    pictures = _encoded(picture.image, picture.mask, sketches, styles)
    return pictures | {"labels": None, "original_area": picture.original_area}


def _encoded(
    image: np.ndarray, mask: np.ndarray, sketches: list[np.ndarray], styles: list[str]
) -> Row:
    height, width = mask.shape
    return {
        "width": width,
        "height": height,
        "image": encode_pixels(image),
        "sketches": [encode_pixels(_to_uint8(sketch)) for sketch in sketches],
        "sketch_styles": styles,
        "mask": encode_pixels(mask),
    }


def _to_uint8(sketch: np.ndarray) -> np.ndarray:
    return (sketch * 255 + 0.5).clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _characters(folder: Path) -> dict[str, Character]:
    return {character.character_id: character for character in load_characters(folder)}
