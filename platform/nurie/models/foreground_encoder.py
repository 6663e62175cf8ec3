"""Foreground adapter (method section 7): features of the reference, injected into skips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from torch import nn

from nurie.config.model import ModelConfig, UNetConfig
from nurie.models.attention import attend, keys_values, project_out
from nurie.models.blocks import Walk, down_path
from nurie.models.conditioning import ForegroundConditioning, match_rows
from nurie.models.unet import embed_time, self_attention_unet


def skip_channels(block_out_channels: Sequence[int], layers_per_block: int) -> list[int]:
    """Widths of a U-Net's skip connections, top to bottom."""
    widths = [block_out_channels[0]]
    for level, channels in enumerate(block_out_channels):
        widths += [channels] * layers_per_block
        if level < len(block_out_channels) - 1:
            widths.append(channels)
    return widths


class ForegroundInjection(nn.Module):
    """Adds reference features to the skip connections inside the foreground.

    Args:
        channels: Widths of the skips, deepest first.
        embedding_dim: Width of the time embedding.
        head_dim: Head width.
    """

    def __init__(self, channels: Sequence[int], embedding_dim: int, head_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    Attention(width, heads=width // head_dim, dim_head=head_dim, bias=False),
                    nn.Linear(embedding_dim, width),
                ]
            )
            for width in channels
        )

    def forward(
        self, skips: list[torch.Tensor], emb: torch.Tensor, foreground: ForegroundConditioning
    ) -> list[torch.Tensor]:
        """``skip + A(skip tokens, feature tokens + Linear(time embedding))`` inside the mask.

        Args:
            skips: Maps ``rows_i x C_i x h_i x w_i``, top to bottom; rows may differ.
            emb: ``B x embedding_dim``.
            foreground: Features, deepest first, and the mask.
        """
        pairs = zip(skips, reversed(self.layers), reversed(foreground.features), strict=True)
        return [
            self._inject(skip, layer, features, emb, foreground) for skip, layer, features in pairs
        ]

    def _inject(
        self,
        skip: torch.Tensor,
        layer: nn.ModuleList,
        features: torch.Tensor,
        emb: torch.Tensor,
        foreground: ForegroundConditioning,
    ) -> torch.Tensor:
        attn, time_linear = layer
        rows, _, height, width = skip.shape
        context = features + time_linear(match_rows(emb, features.shape[0]))[:, None]
        key, value = keys_values(attn, match_rows(context, rows))
        tokens = skip.flatten(2).transpose(1, 2)
        added = project_out(attn, attend(attn, attn.to_q(tokens), key, value))
        added = added.transpose(1, 2).reshape_as(skip) * foreground.strength
        inside = foreground.region.at(height, width) > foreground.region.limit()
        return skip + added * match_rows(inside, rows).to(added.dtype)


class ForegroundAdapter(ModelMixin, ConfigMixin):
    """The encoder half of an SDXL U-Net with self-attention only, plus the injection.

    Args:
        in_channels: Latent channels.
        block_out_channels: Widths of the levels.
        transformer_layers: Transformer blocks per attention layer of each level.
        layers_per_block: Residual blocks per level.
        head_dim: Head width.
        norm_num_groups: Groups of every group normalisation.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        block_out_channels: tuple[int, ...] = (320, 640, 1280),
        transformer_layers: tuple[int, ...] = (0, 2, 10),
        layers_per_block: int = 2,
        head_dim: int = 64,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__()
        shape = UNetConfig(
            block_out_channels=block_out_channels,
            transformer_layers=transformer_layers,
            layers_per_block=layers_per_block,
            head_dim=head_dim,
            norm_num_groups=norm_num_groups,
        )
        net = self_attention_unet(shape, in_channels, None)
        self.conv_in, self.down_blocks = net.conv_in, net.down_blocks
        self.time_proj, self.time_embedding = net.time_proj, net.time_embedding
        widths = skip_channels(block_out_channels, layers_per_block)
        self.zero_layers = nn.ModuleList(nn.Conv2d(c, c, 1) for c in widths)
        for parameter in self.zero_layers.parameters():
            nn.init.zeros_(parameter)
        self.injection = ForegroundInjection(widths[::-1], 4 * block_out_channels[0], head_dim)

    @classmethod
    def build(cls, config: ModelConfig) -> ForegroundAdapter:
        """A freshly initialised adapter."""
        unet = config.unet
        return cls(
            in_channels=config.vae.latent_channels,
            block_out_channels=unet.block_out_channels,
            transformer_layers=unet.transformer_layers,
            layers_per_block=unet.layers_per_block,
            head_dim=unet.head_dim,
            norm_num_groups=unet.norm_num_groups,
        )

    def forward(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """Encodes the masked reference, once per picture at t = 0.

        Args:
            latents: VAE latents of the reference, white outside its mask: ``B x C x h x w``.

        Returns:
            One ``B x N_i x C_i`` per skip connection, deepest first.
        """
        timesteps = torch.zeros(1, dtype=torch.long, device=latents.device)
        emb = embed_time(self, timesteps, latents.shape[0], None, latents.dtype)
        _, skips = down_path(self.down_blocks, self.conv_in(latents), emb, Walk())
        features = [layer(x) for layer, x in zip(self.zero_layers, skips, strict=True)]
        return [x.flatten(2).transpose(1, 2) for x in reversed(features)]
