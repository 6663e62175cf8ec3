"""Small collections of pictures for tests."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

MIXED_RATIOS = (0.5, 1.0, 2.0)


def mixed_shapes(folder: Path, count: int = 12) -> Path:
    """A folder of pictures in turn wide, square and tall; a build at 64 px gives each a bucket."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        height, width = [(90, 180), (100, 100), (300, 140)][number % 3]
        picture = cv2.resize(rng.integers(0, 255, (8, 8, 3), np.uint8), (width, height))
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    return folder
