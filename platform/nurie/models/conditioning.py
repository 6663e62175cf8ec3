"""What the denoiser is told besides the noisy latents: one typed object, no patched forwards.

Rows. A call denoises ``B`` pictures. ``reference_tokens`` may hold ``R * B`` rows (branch-major:
all pictures with their first reference, then all with their second, ...) and ``num_null_branches``
adds branches without any reference. Everything before the first cross-attention is the same for all
branches and is computed once, on ``B`` rows (method section 5, exact saving).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from nurie.models.foreground_encoder import ForegroundInjection

BlockCache = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Transformer block number -> projected reference keys and values."""


def match_rows(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Repeats a tensor branch-wise to ``rows`` rows, or keeps the first ``rows``.

    Args:
        tensor: Any shape ``B x ...``.
        rows: Wanted size of dimension 0; a multiple of ``B`` when larger.
    """
    have = tensor.shape[0]
    if have == rows:
        return tensor
    if have > rows:
        return tensor[:rows]
    assert rows % have == 0, f"cannot repeat {have} rows to {rows}"
    return tensor.repeat(rows // have, *(1,) * (tensor.ndim - 1))


@dataclass(frozen=True)
class RegionMask:
    """A foreground mask that decides per query (method section 6).

    Args:
        mask: ``B x 1 x h x w`` in [0, 1], at latent resolution or finer.
        threshold: A number, or one per row (``B``).
    """

    mask: torch.Tensor
    threshold: float | torch.Tensor = 0.05

    def at(self, height: int, width: int) -> torch.Tensor:
        """The mask on another grid, bicubic: ``B x 1 x height x width``."""
        if self.mask.shape[-2:] == (height, width):
            return self.mask
        return F.interpolate(self.mask, size=(height, width), mode="bicubic")

    def limit(self) -> float | torch.Tensor:
        """The threshold, shaped to compare with ``at``."""
        if isinstance(self.threshold, torch.Tensor):
            return self.threshold.view(-1, 1, 1, 1)
        return self.threshold


@dataclass(frozen=True)
class SplitAttention:
    """Foreground and background attend to different tokens (method section 6).

    With ``merge_scale`` 0 the form is exclusive (foreground means mask > threshold); otherwise
    foreground queries (mask >= threshold) mix both answers.
    """

    region: RegionMask
    merge_scale: float = 0.0
    foreground_scale: float = 1.0
    background_scale: float = 1.0


@dataclass(frozen=True)
class ForegroundConditioning:
    """Foreground features of a reference, injected into the skips (method section 7).

    Args:
        features: One ``B x N_i x C_i`` per skip connection, deepest first.
        region: Where they are injected.
        injection: The module that injects them.
        strength: Factor of what is added to a skip.
    """

    features: Sequence[torch.Tensor]
    region: RegionMask
    injection: ForegroundInjection
    strength: float = 1.0


@dataclass(frozen=True)
class BackgroundConditioning:
    """Self-attention inputs of the background encoder, one per block of the up path (section 7).

    Args:
        bank: ``B x N_i x C_i``.
        region: Foreground; queries outside of it see the bank.
        strength: Share of the bank's answer in theirs.
    """

    bank: Sequence[torch.Tensor]
    region: RegionMask
    strength: float = 1.0


@dataclass(frozen=True)
class Conditioning:
    """Everything the denoiser is told about ``B`` pictures.

    Args:
        added_cond: ``B x added_embedding_dim``, embedded area and score (section 4).
        sketch_features: Four maps of the sketch encoder, or None for no sketch.
        reference_tokens: ``R*B x N x D`` (``R*B x 2N x D`` with ``split``), or None.
        num_null_branches: Branches without a reference, after those with one. With
            ``reference_tokens`` None there is always exactly one.
        split: Separate tokens for foreground and background.
        foreground: Foreground features.
        background: Background features.
        reference_strength: Factor of the cross-attention output before ``to_out``; one number or
            one per transformer block in network order.
        cache: Filled with the projected reference keys and values of every block and reused by
            later calls (section 5); give a new dict per picture, or None while training.
    """

    added_cond: torch.Tensor
    sketch_features: Sequence[torch.Tensor] | None = None
    reference_tokens: torch.Tensor | None = None
    num_null_branches: int = 0
    split: SplitAttention | None = None
    foreground: ForegroundConditioning | None = None
    background: BackgroundConditioning | None = None
    reference_strength: float | Sequence[float] = 1.0
    cache: BlockCache | None = field(default=None, compare=False)

    @property
    def num_reference_rows(self) -> int:
        """Rows that see a reference."""
        return 0 if self.reference_tokens is None else self.reference_tokens.shape[0]

    def num_rows(self, batch: int) -> int:
        """Rows after the first cross-attention for ``batch`` pictures."""
        null = self.num_null_branches if self.num_reference_rows else 1
        return self.num_reference_rows + null * batch

    def strength(self, block: int) -> float:
        """Reference strength of a transformer block (1-based number)."""
        if isinstance(self.reference_strength, (int, float)):
            return self.reference_strength
        return self.reference_strength[block - 1]
