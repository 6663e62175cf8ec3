"""All metrics of one coloured picture that need no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nurie.data.pixels import decode_pixels
from nurie.evaluation import colour, fidelity, lines

COLUMNS = ("sample_id", "image", "sketches", "sketch_styles", "mask", "labels", "roles")
"""Columns of a shard that an evaluation reads."""


@dataclass(frozen=True, eq=False)
class Picture:
    """What is known about a picture.

    Attributes:
        image: uint8 [H, W, 3]; None: there is no truth.
        sketch: uint8 [H, W], dark lines on white.
        style: Line style of the sketch.
        mask: Foreground, bool [H, W]; None: not known.
        labels: Role index of every pixel, uint8 [H, W]; None: roles are not known.
        roles: Name of every index.
    """

    image: np.ndarray | None
    sketch: np.ndarray
    style: str = ""
    mask: np.ndarray | None = None
    labels: np.ndarray | None = None
    roles: Sequence[str] = ()

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


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference.

    Attributes:
        image: uint8 [h, w, 3].
        mask: Foreground, bool [h, w]; None: not known.
    """

    image: np.ndarray
    mask: np.ndarray | None = None


def measure(result: np.ndarray, sample: Picture, reference: Reference) -> dict[str, float]:
    """Every metric of one result that its inputs allow.

    Args:
        result: The coloured sketch, uint8 [H, W, 3].
        sample: Where the sketch comes from; its picture is the truth.
        reference: The reference that was given.

    Returns:
        Name -> value. Always ``line_f1``, ``line_distance_score``, ``palette_to_reference``; with
        masks ``background_leak``; with labels ``bleeding``; with a truth ``psnr``, ``ssim``,
        ``ms_ssim_distance``, ``delta_e``, ``delta_e_p95``, ``palette_to_truth``; with both
        ``lab_error/ROLE``, ``lab_p95_error/ROLE`` and ``lab_median_error/ROLE``.
    """
    values: dict[str, float | None] = {
        "line_f1": lines.line_f1(sample.sketch, result),
        "line_distance_score": lines.line_distance_score(sample.sketch, result),
        "palette_to_reference": colour.palette_distance(
            result, reference.image, sample.mask, reference.mask
        ),
    }
    if sample.mask is not None and reference.mask is not None:
        values["background_leak"] = colour.background_leak(
            result, sample.mask, reference.image, reference.mask
        )
    if sample.labels is not None:
        values["bleeding"] = colour.bleeding(result, sample.labels, sample.sketch)
    if sample.image is not None:
        values |= _against_truth(result, sample.image, sample)
    return {name: value for name, value in values.items() if value is not None}


def _against_truth(result: np.ndarray, truth: np.ndarray, sample: Picture) -> dict[str, float]:
    differences = colour.delta_e(result, truth)
    values = {
        "psnr": fidelity.psnr(result, truth),
        **fidelity.similarity(result, truth)._asdict(),
        "delta_e": float(differences.mean()),
        "delta_e_p95": float(np.quantile(differences, 0.95)),
        "palette_to_truth": colour.palette_distance(result, truth, sample.mask, sample.mask),
    }
    if sample.labels is not None:
        errors = colour.region_errors(result, truth, sample.labels, sample.roles)
        for role, error in errors.items():
            values[f"lab_error/{role}"] = error.mean
            values[f"lab_p95_error/{role}"] = error.p95
            values[f"lab_median_error/{role}"] = error.median_colours
    return values
