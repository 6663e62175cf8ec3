"""The Arrow schema of a shard: one row is one sample, ready for training."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

Row = dict[str, Any]
"""One row as a dictionary of its columns."""

SCHEMA_VERSION = "3"
"""Changes when a column changes its name, type or meaning."""

PLAN_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("sketch_source", pa.string()),
        pa.field("mask_source", pa.string()),
        pa.field("character_id", pa.string(), nullable=False),
        pa.field("palette_id", pa.string(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("roles", pa.list_(pa.string()), nullable=False),
        pa.field("palette", pa.string(), nullable=False),
        pa.field("tags", pa.list_(pa.string()), nullable=False),
        pa.field("aesthetic_score", pa.float32(), nullable=False),
        pa.field("mismatched_ids", pa.list_(pa.string()), nullable=False),
        pa.field("mismatched_rows", pa.list_(pa.int32()), nullable=False),
        pa.field("same_palette_ids", pa.list_(pa.string()), nullable=False),
        pa.field("same_palette_rows", pa.list_(pa.int32()), nullable=False),
    ]
)
"""What is decided about a sample before any picture is made.

``source`` is ``characters`` or where the picture is in its collection, ``sketch_source`` and
``mask_source`` where what belongs to it is (null: it is made); ``group_id`` is the character, the
layout's group or the digest of the file, ``bucket`` the picture's ``HxW``, ``palette`` JSON of role
to ``#rrggbb``. References are named twice: by id, and by their row in the split, so that training
needs no table of all ids.
"""

INDEX_COLUMNS = (
    "sample_id",
    "group_id",
    "palette_id",
    "tags",
    "split",
    "mismatched_ids",
    "same_palette_ids",
)
"""The narrow columns a reader keeps in memory for all rows."""

PICTURE_FIELDS = (
    pa.field("width", pa.int32(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("original_area", pa.int64(), nullable=False),
    pa.field("image", pa.binary(), nullable=False),
    pa.field("sketches", pa.list_(pa.binary()), nullable=False),
    pa.field("sketch_styles", pa.list_(pa.string()), nullable=False),
    pa.field("mask", pa.binary(), nullable=False),
    pa.field("labels", pa.binary()),
)
"""What rendering adds: pictures as ``nurie.data.pixels`` (image RGB; sketches dark on white; mask
255 = foreground; labels = role index, null without roles), and the area before the resize."""

LATENT_FIELDS = (
    pa.field("latents", pa.binary()),
    pa.field("latents_shape", pa.list_(pa.int32()), nullable=False),
)
"""Normalised latents, float16 in C order, null (and an empty shape) without an autoencoder."""

RENDERED_SCHEMA = pa.schema([*PLAN_SCHEMA, *PICTURE_FIELDS])
"""A plan row plus its pictures."""

SAMPLE_SCHEMA = pa.schema(
    [*(field for field in RENDERED_SCHEMA if field.name != "bucket"), *LATENT_FIELDS],
    metadata={"nurie.schema_version": SCHEMA_VERSION},
)
"""One row of a shard. Its bucket is the shard's folder, a partition in Hive's form."""

INCOMPRESSIBLE_COLUMNS = ("image", "sketches", "mask", "labels", "latents")
"""Columns stored without compression: they are compressed one by one, or like noise."""
