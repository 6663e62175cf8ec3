"""Aspect buckets: pictures of about one area and a few shapes, so that a batch has one shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

SIDE_MULTIPLE = 32
"""Sides are multiples of this: the U-Net halves latents, which are an eighth, twice."""


class Bucket(NamedTuple):
    """Height and width of its pictures, in pixels."""

    height: int
    width: int

    @property
    def name(self) -> str:
        """``HxW``."""
        return f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, name: str) -> Bucket:
        """The bucket of a name."""
        height, width = name.split("x")
        return cls(int(height), int(width))


def make_buckets(image_size: int, aspect_ratios: Sequence[float]) -> list[Bucket]:
    """One bucket per aspect ratio, all of about ``image_size`` squared pixels.

    Args:
        image_size: Side of the square bucket, in pixels.
        aspect_ratios: Widths over heights; ratios that round to one shape become one bucket.
    """
    return sorted({_bucket(image_size, ratio) for ratio in aspect_ratios})


def nearest_bucket(width: int, height: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket that least of a picture is cut off for."""
    wanted = math.log(width / height)
    return min(buckets, key=lambda bucket: abs(math.log(bucket.width / bucket.height) - wanted))


def fit(image: np.ndarray, bucket: Bucket, shrink: int = cv2.INTER_AREA) -> np.ndarray:
    """The largest middle part of a picture that has a bucket's shape, in its size.

    Args:
        image: ``H x W`` or ``H x W x C``.
        bucket: Height and width of the result.
        shrink: OpenCV's interpolation for making smaller; ``INTER_NEAREST`` also for making larger.
    """
    height, width = image.shape[:2]
    if (height, width) == bucket:
        return image
    scale = min(height / bucket.height, width / bucket.width)
    part_height = min(height, max(1, round(bucket.height * scale)))
    part_width = min(width, max(1, round(bucket.width * scale)))
    top, left = (height - part_height) // 2, (width - part_width) // 2
    method = shrink if scale > 1 or shrink == cv2.INTER_NEAREST else cv2.INTER_LINEAR
    part = image[top : top + part_height, left : left + part_width]
    return cv2.resize(part, (bucket.width, bucket.height), interpolation=method)


def _bucket(image_size: int, ratio: float) -> Bucket:
    height, width = image_size / math.sqrt(ratio), image_size * math.sqrt(ratio)
    return Bucket(_rounded(height), _rounded(width))


def _rounded(side: float) -> int:
    return max(1, round(side / SIDE_MULTIPLE)) * SIDE_MULTIPLE
