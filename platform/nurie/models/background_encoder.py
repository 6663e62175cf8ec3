"""Background adapter (method section 7): lends its self-attention inputs to the denoiser."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from nurie.config.model import ModelConfig, UNetConfig
from nurie.models.blocks import Walk, down_path, middle_path, up_path
from nurie.models.unet import embed_time, self_attention_unet


def background_input(
    latents: torch.Tensor, sketch_mask: torch.Tensor, reference_mask: torch.Tensor
) -> torch.Tensor:
    """Input of the background encoder: ``B x (C + 2) x h x w``.

    Args:
        latents: Background latents, ``B x C x h x w``.
        sketch_mask: Foreground of the sketch, ``B x 1 x H x W`` in [0, 1].
        reference_mask: Foreground of the reference, likewise.
    """
    size = latents.shape[-2:]
    masks = [F.interpolate(m, size=size, mode="area") for m in (sketch_mask, reference_mask)]
    return torch.cat([latents, *masks], dim=1)


class BackgroundEncoder(ModelMixin, ConfigMixin):
    """An SDXL U-Net without cross-attention and without its output layers.

    Args:
        in_channels: Latent channels plus two masks.
        block_out_channels: Widths of the levels.
        transformer_layers: Transformer blocks per attention layer of each level.
        layers_per_block: Residual blocks per level.
        head_dim: Head width.
        norm_num_groups: Groups of every group normalisation.
        added_embedding_dim: Width of the added embedding (four crop fractions).
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 6,
        block_out_channels: tuple[int, ...] = (320, 640, 1280),
        transformer_layers: tuple[int, ...] = (0, 2, 10),
        layers_per_block: int = 2,
        head_dim: int = 64,
        norm_num_groups: int = 32,
        added_embedding_dim: int = 1024,
    ) -> None:
        super().__init__()
        shape = UNetConfig(
            block_out_channels=block_out_channels,
            transformer_layers=transformer_layers,
            layers_per_block=layers_per_block,
            head_dim=head_dim,
            norm_num_groups=norm_num_groups,
        )
        net = self_attention_unet(shape, in_channels, added_embedding_dim)
        self.conv_in, self.down_blocks = net.conv_in, net.down_blocks
        self.time_proj, self.time_embedding = net.time_proj, net.time_embedding
        self.class_embedding, self.mid_block = net.class_embedding, net.mid_block
        # Levels above the last transformer block would hand over nothing.
        levels = len(transformer_layers) - next(i for i, d in enumerate(transformer_layers) if d)
        self.up_blocks = nn.ModuleList(net.up_blocks[:levels])
        if levels < len(transformer_layers):
            self.up_blocks[-1].upsamplers = None

    @classmethod
    def build(cls, config: ModelConfig) -> BackgroundEncoder:
        """A freshly initialised encoder."""
        unet = config.unet
        return cls(
            in_channels=config.vae.latent_channels + 2,
            block_out_channels=unet.block_out_channels,
            transformer_layers=unet.transformer_layers,
            layers_per_block=unet.layers_per_block,
            head_dim=unet.head_dim,
            norm_num_groups=unet.norm_num_groups,
            added_embedding_dim=config.background_embedding_dim,
        )

    def forward(self, background: torch.Tensor, added_cond: torch.Tensor) -> list[torch.Tensor]:
        """Encodes, once per picture at t = 0.

        Args:
            background: Background latents, sketch mask, reference mask: ``B x (C + 2) x h x w``.
            added_cond: Embedded crop (top, left, height, width): ``B x added_embedding_dim``.

        Returns:
            The bank: one ``B x N_i x C_i`` per transformer block of the up path, in order.
        """
        timesteps = torch.zeros(1, dtype=torch.long, device=background.device)
        emb = embed_time(self, timesteps, background.shape[0], added_cond, background.dtype)
        walk = Walk(bank=[])
        x, skips = down_path(self.down_blocks, self.conv_in(background), emb, walk)
        x = middle_path(self.mid_block, x, emb, walk)
        up_path(self.up_blocks, x, skips, emb, walk)
        assert walk.bank is not None
        return walk.bank
