"""The denoising U-Net (method section 4): diffusers' SDXL blocks with typed conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock

from nurie.config.model import UNetConfig
from nurie.models.blocks import Walk, down_path, middle_path, up_path
from nurie.models.conditioning import Conditioning, match_rows


@dataclass(frozen=True)
class UNetOutput:
    """What the denoiser returns.

    Args:
        sample: Prediction, ``rows x C x h x w``.
        blocks: Token outputs ``rows x N x C`` of the captured transformer blocks, by number.
    """

    sample: torch.Tensor
    blocks: dict[int, torch.Tensor]


def sdxl_arguments(
    config: UNetConfig,
    in_channels: int,
    out_channels: int,
    added_embedding_dim: int | None,
) -> dict[str, Any]:
    """Arguments of ``UNet2DConditionModel`` for an SDXL-shaped network of this size."""
    with_attention = [depth > 0 for depth in config.transformer_layers]
    return {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": config.block_out_channels,
        "layers_per_block": config.layers_per_block,
        "down_block_types": tuple(
            "CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in with_attention
        ),
        "up_block_types": tuple(
            "CrossAttnUpBlock2D" if attention else "UpBlock2D"
            for attention in reversed(with_attention)
        ),
        "transformer_layers_per_block": tuple(max(d, 1) for d in config.transformer_layers),
        # diffusers' name is historical: the value is the number of heads.
        "attention_head_dim": tuple(c // config.head_dim for c in config.block_out_channels),
        "norm_num_groups": config.norm_num_groups,
        "cross_attention_dim": config.cross_attention_dim,
        "use_linear_projection": True,
        "class_embed_type": None if added_embedding_dim is None else "projection",
        "projection_class_embeddings_input_dim": added_embedding_dim,
    }


def self_attention_unet(
    config: UNetConfig, in_channels: int, added_embedding_dim: int | None
) -> UNet2DConditionModel:
    """An SDXL-shaped network without cross-attention; the adapters take their parts from it."""
    net = UNet2DConditionModel(
        **sdxl_arguments(config, in_channels, in_channels, added_embedding_dim)
    )
    for module in net.modules():
        if isinstance(module, BasicTransformerBlock):
            # diffusers cannot be asked for these blocks without cross-attention.
            module.attn2, module.norm2 = None, None
    return net


def embed_time(
    unet: UNet2DConditionModel,
    timesteps: torch.Tensor,
    rows: int,
    added_cond: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Time embedding plus the projected added embedding, ``rows x 4*C0``."""
    emb = unet.time_embedding(unet.time_proj(timesteps.reshape(-1)).to(dtype))
    if added_cond is not None:
        emb = emb + unet.class_embedding(added_cond.to(dtype))
    return match_rows(emb, rows)


class ColorizationUNet(UNet2DConditionModel):
    """Denoiser of reference-based sketch colorization.

    Same parameters and file format as ``diffusers.UNet2DConditionModel``; the forward pass takes a
    ``Conditioning``. Computation that several branches share is done once.
    """

    @classmethod
    def build(cls, config: UNetConfig, latent_channels: int) -> ColorizationUNet:
        """A freshly initialised network."""
        return cls(
            **sdxl_arguments(config, latent_channels, latent_channels, config.added_embedding_dim)
        )

    def num_blocks(self) -> tuple[int, int]:
        """Transformer blocks before the up path, and in it."""
        counts = [
            sum(isinstance(module, BasicTransformerBlock) for module in part.modules())
            for part in (self.down_blocks, self.mid_block, self.up_blocks)
        ]
        return counts[0] + counts[1], counts[2]

    def forward(
        self,
        sample: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        capture: Sequence[int] = (),
        keep_branches: int | None = None,
    ) -> UNetOutput:
        """Predicts v for every branch.

        Args:
            sample: Noisy latents, ``B x C x h x w``.
            timesteps: ``B`` or a single step.
            conditioning: See ``Conditioning``; gives the number of branches.
            capture: Numbers of transformer blocks whose outputs are returned.
            keep_branches: Branches that go on after the last captured block (None: all); the
                others end there (method section 5, exact saving).

        Returns:
            The prediction of the branches that went on, and the captured outputs of all branches.
        """
        batch = sample.shape[0]
        walk = Walk(
            conditioning,
            rows=conditioning.num_rows(batch),
            capture=capture,
            keep_rows=None if keep_branches is None else keep_branches * batch,
        )
        emb = embed_time(self, timesteps, batch, conditioning.added_cond, sample.dtype)
        x = self.conv_in(sample)
        x, skips = down_path(self.down_blocks, x, emb, walk, conditioning.sketch_features)
        x = middle_path(self.mid_block, x, emb, walk)
        if conditioning.foreground is not None:
            skips = conditioning.foreground.injection(skips, emb, conditioning.foreground)
        x = up_path(self.up_blocks, x, skips, emb, walk)
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return UNetOutput(x, walk.captured)
