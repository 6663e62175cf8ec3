"""All metrics of one coloured picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nurie.data.pixels import decode_pixels
from nurie.evaluation import metrics, perceptual

COLUMNS = ("sample_id", "image", "sketches", "sketch_styles", "mask", "labels", "roles")
"""Columns of a shard that an evaluation reads."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A sample of the data set, decoded.

    Attributes:
        image: uint8 [H, W, 3].
        sketch: uint8 [H, W], dark lines on white.
        style: Line style of the sketch.
        mask: Foreground, bool [H, W].
        labels: Role index of every pixel, uint8 [H, W]; None: roles are not known.
        roles: Name of every index.
    """

    image: np.ndarray
    sketch: np.ndarray
    style: str
    mask: np.ndarray
    labels: np.ndarray | None
    roles: Sequence[str]

    @classmethod
    def of(cls, row: dict[str, Any], sketch: int = 0) -> Picture:
        """Decode a row; ``sketch`` counts modulo the number of its sketches."""
        chosen = sketch % len(row["sketches"])
        return cls(
            image=decode_pixels(row["image"]),
            sketch=decode_pixels(row["sketches"][chosen]),
            style=row["sketch_styles"][chosen],
            mask=decode_pixels(row["mask"]) > 127,
            labels=None if row["labels"] is None else decode_pixels(row["labels"]),
            roles=row["roles"],
        )


def measure(result: np.ndarray, sample: Picture, reference: Picture) -> dict[str, float]:
    """Every metric of one result.

    Args:
        result: The coloured sketch, uint8 [H, W, 3].
        sample: Where the sketch comes from; its picture is the truth.
        reference: The reference that was given.

    Returns:
        Name -> value: ``psnr``, ``ssim``, ``ms_ssim_distance``, ``delta_e``, ``line_f1``,
        ``palette_to_reference``, ``palette_to_truth`` and, where roles are known,
        ``lab_error/ROLE`` (mean over its pixels) and ``lab_median_error/ROLE``.
    """
    truth = sample.image
    values = {
        "psnr": metrics.psnr(result, truth),
        "ssim": perceptual.ssim(result, truth),
        "ms_ssim_distance": perceptual.ms_ssim_distance(result, truth),
        "delta_e": float(metrics.delta_e(result, truth).mean()),
        "line_f1": metrics.line_f1(sample.sketch, result),
        "palette_to_reference": metrics.palette_distance(
            result, reference.image, sample.mask, reference.mask
        ),
        "palette_to_truth": metrics.palette_distance(result, truth, sample.mask, sample.mask),
    }
    if sample.labels is not None:
        errors = metrics.role_errors(result, truth, sample.labels, sample.roles)
        for role, (mean, median) in errors.items():
            values[f"lab_error/{role}"] = mean
            values[f"lab_median_error/{role}"] = median
    return values
