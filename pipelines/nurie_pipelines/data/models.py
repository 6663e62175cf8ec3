"""Models of the user's own in a build: a line extractor, a foreground segmenter."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from nurie.config.data import DataConfig
from nurie.data.picture_models import PictureMap
from nurie.data.pixels import decode_pixels, encode_pixels

MODEL_STYLE = "model"
"""Style of the sketches that the line extractor draws."""
_FOREGROUND = 0.5


class ApplyModels:
    """Ray actor of the build: adds a sketch, and a mask where there is none, to whole shards.

    Args:
        config: The build; names the models.

    Raises:
        nurie.data.picture_models.PictureModelError: If a model cannot be used.
    """

    def __init__(self, config: DataConfig) -> None:
        self._lines = PictureMap(config.line_model) if config.line_model else None
        self._masks = PictureMap(config.mask_model) if config.mask_model else None

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Replace the columns ``sketches``, ``sketch_styles`` and ``mask`` of rendered rows."""
        changed: dict[str, list] = {name: [] for name in ("sketches", "sketch_styles", "mask")}
        for row in rows.select(["image", *changed]).to_pylist():
            image = decode_pixels(row["image"])
            if self._lines is not None:
                row["sketches"] = [*row["sketches"], encode_pixels(_to_uint8(self._lines(image)))]
                row["sketch_styles"] = [*row["sketch_styles"], MODEL_STYLE]
            # A mask that is foreground everywhere says that none came with the picture.
            if self._masks is not None and (decode_pixels(row["mask"]) == 255).all():
                row["mask"] = encode_pixels(_to_uint8(self._masks(image) > _FOREGROUND))
            for name, values in changed.items():
                values.append(row[name])
        for name, values in changed.items():
            place = rows.schema.get_field_index(name)
            field = rows.schema.field(place)
            rows = rows.set_column(place, field, pa.array(values, field.type))
        return rows


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return (values * np.float32(255) + np.float32(0.5)).clip(0, 255).astype(np.uint8)
