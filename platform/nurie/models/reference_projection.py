"""Reference tokens for the U-Net from image and tagger tokens (method section 3)."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from torch import nn

from nurie.config.model import ModelConfig
from nurie.models.attention import attend, keys_values, project_out


class ReferenceProjection(ModelMixin, ConfigMixin):
    """Joins image tokens and tagger tokens of the same index and projects them.

    Args:
        image_token_dim: Width of the image tokens.
        tagger_token_dim: Width of the tagger tokens.
        num_tokens: Tokens kept and returned.
        head_dim: Head width of the self-attention over the image tokens.
        hidden_dim: Hidden width of the feed-forward layers.
        cross_attention_dim: Width of the result.
    """

    @register_to_config
    def __init__(
        self,
        image_token_dim: int = 1280,
        tagger_token_dim: int = 1024,
        num_tokens: int = 196,
        head_dim: int = 128,
        hidden_dim: int = 2048,
        cross_attention_dim: int = 2048,
    ) -> None:
        super().__init__()
        self.attn = Attention(
            image_token_dim, heads=image_token_dim // head_dim, dim_head=head_dim, bias=False
        )
        self.norm = nn.LayerNorm(image_token_dim)
        self.proj = nn.Sequential(
            nn.Linear(image_token_dim + tagger_token_dim, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, cross_attention_dim),
            nn.LayerNorm(cross_attention_dim),
        )

    @classmethod
    def build(cls, config: ModelConfig) -> ReferenceProjection:
        """A freshly initialised projection."""
        reference = config.reference
        return cls(
            image_token_dim=reference.image_token_dim,
            tagger_token_dim=reference.tagger_token_dim,
            num_tokens=reference.num_tokens,
            head_dim=reference.projection_head_dim,
            hidden_dim=reference.projection_hidden_dim,
            cross_attention_dim=config.unet.cross_attention_dim,
        )

    def forward(self, image_tokens: torch.Tensor, tagger_tokens: torch.Tensor) -> torch.Tensor:
        """Projects.

        Args:
            image_tokens: ``B x (1 + patches) x image_token_dim``.
            tagger_tokens: ``B x num_tokens x tagger_token_dim``.

        Returns:
            ``encoder_hidden_states``, ``B x num_tokens x cross_attention_dim``.
        """
        key, value = keys_values(self.attn, image_tokens)
        mixed = attend(self.attn, self.attn.to_q(image_tokens), key, value)
        mixed = project_out(self.attn, mixed)[:, : self.config.num_tokens]
        return self.proj(torch.cat([self.norm(mixed), tagger_tokens], dim=-1))
