"""Latents of the pictures, computed once so that the trainer never runs the autoencoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from nurie.data.pixels import decode_pixels
from nurie.data.schema import LATENT_FIELDS

PICTURES_PER_PASS = 4
"""Few at a time stay in the cache: on a CPU half the time of sixteen."""


class LatentEncoder:
    """The frozen autoencoder.

    Args:
        folder: Folder of a ``diffusers.AutoencoderKL``.
        device: Where it computes.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        import torch
        from diffusers import AutoencoderKL

        torch.set_num_threads(1)  # also keeps the bytes independent of the number of cores
        vae = AutoencoderKL.from_pretrained(folder).eval().requires_grad_(False)
        self._vae = vae.to(  # pyright: ignore[reportCallIssue] (diffusers decorates it)
            device=device, memory_format=torch.channels_last
        )

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Encode pictures, uint8 [B, H, W, 3], to latents, float16 [B, C, h, w]."""
        starts = range(0, len(images), PICTURES_PER_PASS)
        return np.concatenate(
            [self._encode(images[start : start + PICTURES_PER_PASS]) for start in starts]
        )

    def _encode(self, images: np.ndarray) -> np.ndarray:
        import torch

        from nurie.models.autoencoder import encode_latents

        pixels = (
            torch.tensor(images, device=self._vae.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        )
        with torch.inference_mode():
            return encode_latents(self._vae, pixels).cpu().numpy().astype(np.float16)


class EncodeLatents:
    """Ray actor of the build: adds the latents to whole shards.

    Args:
        folder: Folder of a ``diffusers.AutoencoderKL``.
    """

    def __init__(self, folder: Path) -> None:
        self._encoder = LatentEncoder(folder)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Add the ``LATENT_FIELDS`` to the rendered rows of one shard."""
        pictures = np.stack([decode_pixels(data) for data in rows["image"].to_pylist()])
        latents = self._encoder.encode(pictures)
        return append_latents(rows, [part.tobytes() for part in latents], latents.shape[1:])


def append_latents(rows: pa.Table, latents: list[bytes | None], shape: tuple[int, ...]) -> pa.Table:
    """Append the latents (None: not computed) and their common shape to rows."""
    for field, values in zip(LATENT_FIELDS, (latents, [list(shape)] * len(latents)), strict=True):
        rows = rows.append_column(field, pa.array(values, field.type))
    return rows
