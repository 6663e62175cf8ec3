"""A small tagger with the interface of the published ones; used as ONNX after its training."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

_WIDTHS = (32, 48)
_BLOCKS = 3
_GROUPS = 8


class TaggerNetwork(nn.Module):
    """Convolutions to a map of an eighth of the side, normalised, averaged, scored."""

    def __init__(self, num_tags: int, token_dim: int) -> None:
        """Make the network.

        Args:
            num_tags: Number of scores.
            token_dim: Width of the feature map, a multiple of 8.
        """
        super().__init__()
        widths = (3, *_WIDTHS, token_dim)
        self.down = nn.ModuleList(
            nn.Conv2d(inner, outer, 3, stride=2, padding=1) for inner, outer in pairwise(widths)
        )
        self.blocks = nn.ModuleList(_ResidualBlock(token_dim) for _ in range(_BLOCKS))
        self.norm = nn.LayerNorm(token_dim)
        self.classifier = nn.Linear(token_dim, num_tags)

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Return the normalised feature map, B x cells x token_dim, in row-major order.

        Args:
            images: BGR pictures, 0..255, B x S x S x 3.
        """
        hidden = images.permute(0, 3, 1, 2) / 127.5 - 1
        for number, convolution in enumerate(self.down):
            hidden = convolution(hidden if number == 0 else F.silu(hidden))
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden.flatten(2).transpose(1, 2))

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Score the tags, before the sigmoid, from the result of :meth:`tokens`."""
        return self.classifier(tokens.mean(dim=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the probability of each tag, B x num_tags."""
        return self.logits(self.tokens(images)).sigmoid()


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(_GROUPS, width), nn.GroupNorm(_GROUPS, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = self.conv1(F.silu(self.norm1(hidden)))
        return hidden + self.conv2(F.silu(self.norm2(inner)))
