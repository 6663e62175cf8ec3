"""Added embeddings of SDXL-shaped networks: sinusoids of a few numbers (sections 4 and 7)."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_timestep_embedding

DEFAULT_AESTHETIC_SCORE = 7.0
"""Score at inference."""
FULL_CROP = (0.0, 0.0, 1.0, 1.0)
"""Top, left, height and width of an uncropped reference, as fractions."""


def embed_scalars(values: torch.Tensor, width: int) -> torch.Tensor:
    """Embeds each number in ``width // K`` sinusoids (cosines first) and joins them.

    Args:
        values: ``B x K``.
        width: Total width, a multiple of ``2 K``.
    """
    batch, count = values.shape
    part = get_timestep_embedding(
        values.flatten().float(), width // count, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    return part.reshape(batch, width)


def embed_size_and_score(area: torch.Tensor, score: torch.Tensor, width: int) -> torch.Tensor:
    """Embeds ``sqrt(area)`` (pixels) and the aesthetic score, ``B`` each: ``B x width``."""
    return embed_scalars(torch.stack([area.float().sqrt(), score.float()], dim=1), width)
