"""Attention with diffusers' ``Attention`` weights: plain, without a reference, and split by region.

The functions call the weights' own sub-modules, so hooks (ZeRO-3) and LoRA wrappers keep working,
and nothing is left on a module between calls.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention

from nurie.models.conditioning import SplitAttention


def keys_values(attn: Attention, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Projects context tokens ``B x N x D`` to keys and values, each ``B x N x C``."""
    return attn.to_k(context), attn.to_v(context)


def _split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(
    attn: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Multi-head attention before ``to_out``: ``B x N x C`` queries to ``B x N x C``."""
    out = F.scaled_dot_product_attention(
        _split_heads(query, attn.heads),
        _split_heads(key, attn.heads),
        _split_heads(value, attn.heads),
    )
    return out.transpose(1, 2).flatten(2)


def attend_split(
    attn: Attention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    limit: torch.Tensor | float,
    split: SplitAttention,
) -> torch.Tensor:
    """Split attention (method section 6): first half of the tokens foreground, second background.

    Args:
        attn: The attention's weights.
        query: ``B x N x C``.
        key: ``B x 2M x C``.
        value: ``B x 2M x C``.
        mask: Foreground mask per query, ``B x N x 1``.
        limit: Threshold, a number or ``B x 1 x 1``.
        split: Scales.
    """
    (key_fg, key_bg), (value_fg, value_bg) = key.chunk(2, dim=1), value.chunk(2, dim=1)
    foreground = attend(attn, query, key_fg, value_fg)
    background = attend(attn, query, key_bg, value_bg)
    fg_scale, bg_scale, merge = (
        split.foreground_scale,
        split.background_scale,
        split.merge_scale,
    )
    if merge == 0:
        return torch.where(mask > limit, fg_scale * foreground, bg_scale * background)
    merged = fg_scale * foreground * (1 - merge) + bg_scale * background * merge
    return torch.where(mask >= limit, merged, bg_scale * background)


def project_out(attn: Attention, hidden_states: torch.Tensor) -> torch.Tensor:
    """The attention's output projection (and dropout, inactive in all our models)."""
    return attn.to_out[1](attn.to_out[0](hidden_states))


def null_output(attn: Attention, like: torch.Tensor) -> torch.Tensor:
    """Cross-attention to a reference of zeros, ``1 x 1 x C``.

    Keys and values have no bias, so only the output bias is left (method section 5, exact saving).
    """
    return attn.to_out[0](torch.zeros_like(like[:1, :1]))
