"""One pass through a U-Net made of diffusers' blocks, with typed conditioning.

``Walk`` holds what belongs to a single call; the functions below walk the blocks' own sub-modules
in diffusers' order. Blocks are numbered from 1 in network order (down, middle, up).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from nurie.models.attention import (
    attend,
    attend_split,
    keys_values,
    null_output,
    project_out,
)
from nurie.models.conditioning import Conditioning, RegionMask, SplitAttention, match_rows


@dataclass
class Walk:
    """The state of one forward call.

    Args:
        conditioning: None in the adapters, whose blocks have self-attention only.
        rows: Rows after the first cross-attention.
        capture: Numbers of the blocks whose outputs are kept.
        keep_rows: Rows that go on after the last captured block (None: all).
        block: Number of the current transformer block, from 1.
        up_block: Number of the current block within the up path, from 0; None before it.
        captured: Outputs of the captured blocks.
        bank: Collects the normalised self-attention inputs of the up path, when it is a list.
    """

    conditioning: Conditioning | None = None
    rows: int = 0
    capture: Sequence[int] = ()
    keep_rows: int | None = None
    block: int = 0
    up_block: int | None = None
    captured: dict[int, torch.Tensor] = field(default_factory=dict)
    bank: list[torch.Tensor] | None = None

    def finish_block(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Keeps a captured output and drops the rows that are not needed any further."""
        if self.block in self.capture:
            self.captured[self.block] = hidden_states
            if self.keep_rows is not None and self.block == max(self.capture):
                self.rows = self.keep_rows
                return match_rows(hidden_states, self.keep_rows)
        return hidden_states


def _region_rows(region: RegionMask, grid: tuple[int, int], rows: int) -> tuple:
    """Mask per query (``rows x N x 1``) and threshold, for a grid of queries."""
    mask = match_rows(region.at(*grid).flatten(2).transpose(1, 2), rows)
    limit = region.limit()
    if isinstance(limit, torch.Tensor):
        limit = match_rows(limit.view(-1, 1, 1), rows)
    return mask, limit


def _self_attention(
    block: BasicTransformerBlock, normed: torch.Tensor, walk: Walk, grid: tuple[int, int]
) -> torch.Tensor:
    """Self-attention; in the up path background queries may see the background bank instead."""
    query = block.attn1.to_q(normed)
    background = walk.conditioning.background if walk.conditioning else None
    if background is None or walk.up_block is None:
        key, value = keys_values(block.attn1, normed)
        return project_out(block.attn1, attend(block.attn1, query, key, value))
    rows = normed.shape[0]
    handed = match_rows(background.bank[walk.up_block], rows)
    key, value = keys_values(block.attn1, torch.cat([normed, handed], dim=1))
    mask, limit = _region_rows(background.region, grid, rows)
    split = SplitAttention(background.region)
    out = attend_split(block.attn1, query, key, value, mask, limit, split)
    if background.strength != 1:
        own_key, own_value = (x[:, : normed.shape[1]] for x in (key, value))
        own = attend(block.attn1, query, own_key, own_value)
        out = torch.lerp(own, out, background.strength)
    return project_out(block.attn1, out)


def _reference_keys_values(
    block: BasicTransformerBlock, walk: Walk, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Projected reference tokens, from the cache where there is one."""
    conditioning = walk.conditioning
    assert conditioning is not None and conditioning.reference_tokens is not None
    if conditioning.cache is not None and walk.block in conditioning.cache:
        return conditioning.cache[walk.block]
    pair = keys_values(block.attn2, conditioning.reference_tokens[:rows])
    if conditioning.cache is not None:
        conditioning.cache[walk.block] = pair
    return pair


def _cross_attention(
    block: BasicTransformerBlock, normed: torch.Tensor, walk: Walk, grid: tuple[int, int]
) -> torch.Tensor:
    """Cross-attention to the reference; rows without a reference get the output bias alone."""
    conditioning = walk.conditioning
    assert conditioning is not None
    total = normed.shape[0]
    rows = min(conditioning.num_reference_rows, total)
    outputs = []
    if rows:
        key, value = _reference_keys_values(block, walk, rows)
        query = block.attn2.to_q(normed[:rows])
        if conditioning.split is None:
            out = attend(block.attn2, query, key, value)
        else:
            mask, limit = _region_rows(conditioning.split.region, grid, rows)
            out = attend_split(block.attn2, query, key, value, mask, limit, conditioning.split)
        strength = conditioning.strength(walk.block)
        outputs.append(project_out(block.attn2, out * strength if strength != 1 else out))
    if rows < total:
        null = null_output(block.attn2, normed)
        outputs.append(null.expand(total - rows, normed.shape[1], -1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def transformer_block(
    block: BasicTransformerBlock,
    hidden_states: torch.Tensor,
    walk: Walk,
    grid: tuple[int, int],
    recompute: bool = False,
) -> torch.Tensor:
    """One transformer block on tokens ``B x N x C``: both attentions and the feed-forward.

    Args:
        block: The block.
        hidden_states: Its input.
        walk: State of the call.
        grid: Height and width of the map of tokens.
        recompute: Compute the block again in the backward pass instead of keeping what it needs.
    """
    walk.block += 1
    # By the time a block is computed again, the walk has gone on.
    here = copy(walk) if recompute else walk

    def outputs(hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own = block.norm1(hidden_states)
        hidden_states = hidden_states + _self_attention(block, own, here, grid)
        if block.attn2 is not None:
            hidden_states = match_rows(hidden_states, here.rows)
            normed = block.norm2(hidden_states)
            hidden_states = hidden_states + _cross_attention(block, normed, here, grid)
        return hidden_states + block.ff(block.norm3(hidden_states)), own

    hidden_states, normed = _run(outputs, hidden_states, recompute=recompute)
    if walk.up_block is not None:
        if walk.bank is not None:
            walk.bank.append(normed)
        walk.up_block += 1
    return walk.finish_block(hidden_states)


def _run(function: Callable[..., Any], *inputs: torch.Tensor, recompute: bool) -> Any:
    if recompute and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


def transformer(module: Transformer2DModel, x: torch.Tensor, walk: Walk) -> torch.Tensor:
    """A stack of transformer blocks on a map ``B x C x h x w`` (linear projections)."""
    _, channels, height, width = x.shape
    tokens = module.norm(x).flatten(2).transpose(1, 2)
    tokens = module.proj_in(tokens)
    for block in module.transformer_blocks:
        tokens = transformer_block(
            block, tokens, walk, (height, width), module.gradient_checkpointing
        )
    tokens = module.proj_out(tokens)
    out = tokens.transpose(1, 2).reshape(tokens.shape[0], channels, height, width)
    return out + match_rows(x, out.shape[0])


def _layer(
    resnet: nn.Module,
    attention: Transformer2DModel | None,
    x: torch.Tensor,
    emb: torch.Tensor,
    walk: Walk,
    recompute: bool,
) -> torch.Tensor:
    x = _run(resnet, x, match_rows(emb, x.shape[0]), recompute=recompute)
    return x if attention is None else transformer(attention, x, walk)


def _attentions(block: nn.Module) -> Sequence[Transformer2DModel | None]:
    return getattr(block, "attentions", None) or [None] * len(block.resnets)


def down_path(
    blocks: Sequence[nn.Module],
    x: torch.Tensor,
    emb: torch.Tensor,
    walk: Walk,
    sketch_features: Sequence[torch.Tensor] | None = None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The encoder half, from the output of ``conv_in``.

    Args:
        blocks: Down blocks.
        x: ``B x C0 x h x w``.
        emb: Time (and added) embedding, ``B x 4*C0``.
        walk: State of the call.
        sketch_features: Maps added after ``conv_in`` and after each block, to the hidden state and
            to its skip (method section 2).

    Returns:
        The last map and all skip connections, top to bottom.
    """
    if sketch_features is not None:
        x = _add_sketch(x, sketch_features[0])
    skips = [x]
    for level, block in enumerate(blocks):
        for resnet, attention in zip(block.resnets, _attentions(block), strict=True):
            x = _layer(resnet, attention, x, emb, walk, block.gradient_checkpointing)
            skips.append(x)
        if block.downsamplers is not None:
            x = block.downsamplers[0](x)
            skips.append(x)
        if sketch_features is not None:
            x = _add_sketch(x, sketch_features[level + 1])
            skips[-1] = x
    return x, skips


def _add_sketch(x: torch.Tensor, feature: torch.Tensor) -> torch.Tensor:
    rows = max(x.shape[0], feature.shape[0])
    return match_rows(x, rows) + match_rows(feature, rows)


def middle_path(block: nn.Module, x: torch.Tensor, emb: torch.Tensor, walk: Walk) -> torch.Tensor:
    """The middle block: residual, transformer, residual."""
    recompute = block.gradient_checkpointing
    x = _layer(block.resnets[0], None, x, emb, walk, recompute)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = transformer(attention, x, walk)
        x = _layer(resnet, None, x, emb, walk, recompute)
    return x


def up_path(
    blocks: Sequence[nn.Module],
    x: torch.Tensor,
    skips: list[torch.Tensor],
    emb: torch.Tensor,
    walk: Walk,
) -> torch.Tensor:
    """The decoder half; consumes the skips from the bottom up."""
    walk.up_block = 0
    remaining = list(skips)
    for block in blocks:
        for resnet, attention in zip(block.resnets, _attentions(block), strict=True):
            skip = match_rows(remaining.pop(), x.shape[0])
            both = torch.cat([x, skip], dim=1)
            x = _layer(resnet, attention, both, emb, walk, block.gradient_checkpointing)
        if block.upsamplers is not None:
            size = remaining[-1].shape[-2:]
            x = block.upsamplers[0](x, tuple(size))
    return x
