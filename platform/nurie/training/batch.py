"""The tensors of one training batch, in the units the models take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from nurie.models.added_embedding import embed_size_and_score
from nurie.models.sketch_encoder import invert_sketch


@dataclass(frozen=True)
class TrainBatch:
    """``B`` samples.

    Args:
        latents: Normalised latents of the picture, ``B x C x h x w``.
        sketch: Inverted sketch in [-1, 1], ``B x 3 x H x W``.
        foreground_mask: In [0, 1], ``B x 1 x H x W``.
        added_cond: Embedded area and score, ``B x added_embedding_dim``.
        image_tokens: Of the aligned, then (if there) of the mismatched reference: ``R*B x N x D``.
        tagger_tokens: Likewise.
        image: Picture in [-1, 1], ``B x 3 x H x W``; background stage only.
        reference_image: Aligned reference, likewise; foreground stage only.
        background_image: Reference of the background, likewise; background stage only.
        reference_mask: Foreground of either, in [0, 1], ``B x 1 x H x W``.
    """

    latents: torch.Tensor
    sketch: torch.Tensor
    foreground_mask: torch.Tensor
    added_cond: torch.Tensor
    image_tokens: torch.Tensor
    tagger_tokens: torch.Tensor
    image: torch.Tensor | None = None
    reference_image: torch.Tensor | None = None
    background_image: torch.Tensor | None = None
    reference_mask: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.latents.shape[0]


def _picture(pixels: torch.Tensor | None) -> torch.Tensor | None:
    """``B x H x W x 3`` in 0..255 to ``B x 3 x H x W`` in [-1, 1]."""
    return None if pixels is None else pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def _mask(mask: torch.Tensor | None) -> torch.Tensor | None:
    return None if mask is None else mask[:, None].float() / 255


def make_batch(columns: Mapping[str, torch.Tensor], added_embedding_dim: int) -> TrainBatch:
    """Builds a batch from the columns the data pipeline delivers.

    Args:
        columns: Tensors by column name (see ``nurie_pipelines.data.ingest``).
        added_embedding_dim: Width of the added embedding.
    """

    def both(name: str) -> torch.Tensor:
        tokens = [columns[name]]
        if f"mismatched_{name}" in columns:
            tokens.append(columns[f"mismatched_{name}"])
        return torch.cat(tokens).float()

    mask = _mask(columns["foreground_mask"])
    assert mask is not None
    return TrainBatch(
        latents=columns["latents"].float(),
        sketch=invert_sketch(columns["sketch"]),
        foreground_mask=mask,
        added_cond=embed_size_and_score(
            columns["original_area"], columns["aesthetic_score"], added_embedding_dim
        ),
        image_tokens=both("image_tokens"),
        tagger_tokens=both("tagger_tokens"),
        image=_picture(columns.get("image")),
        reference_image=_picture(columns.get("reference_image")),
        background_image=_picture(columns.get("background_image")),
        reference_mask=_mask(columns.get("reference_mask")),
    )
