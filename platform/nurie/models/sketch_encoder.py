"""The sketch encoder (method section 2): four maps that are added inside the U-Net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from nurie.config.model import ModelConfig


def invert_sketch(sketch: torch.Tensor) -> torch.Tensor:
    """``B x H x W`` in 0..255 (255 = paper) to ``B x 3 x H x W`` in [-1, 1] (-1 = paper)."""
    inverted = 1 - sketch.float() / 127.5
    return inverted[:, None].expand(-1, 3, -1, -1)


def rotary_angles(height: int, width: int, head_dim: int, device: torch.device) -> torch.Tensor:
    """Angles of the 2-D rotary positions: ``height*width x head_dim/2``, rows then columns."""
    quarter = head_dim // 4
    exponent = torch.arange(quarter, device=device, dtype=torch.float32) * 2 / (head_dim // 2)
    frequencies = 10000.0**-exponent
    rows = torch.arange(height, device=device, dtype=torch.float32)[:, None] * frequencies
    columns = torch.arange(width, device=device, dtype=torch.float32)[:, None] * frequencies
    rows = rows[:, None].expand(height, width, quarter)
    columns = columns[None].expand(height, width, quarter)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def rotate_pairs(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotates neighbouring pairs ``(x[2k], x[2k+1])`` of ``... x N x d`` by ``N x d/2`` angles."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class _WideRMSNorm(nn.Module):
    """RMS normalisation over the whole inner width, computed in fp32."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight


class MultiScaleAttention(nn.Module):
    """Self-attention over all maps: a query sees its own map and everything coarser."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.heads = dim // head_dim
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.q_norm = _WideRMSNorm(dim)
        self.k_norm = _WideRMSNorm(dim)

    def forward(self, tokens: torch.Tensor, grids: list[tuple[int, int]]) -> torch.Tensor:
        """Attends.

        Args:
            tokens: ``B x N x D``, coarse to fine: global token, then the maps of ``grids``.
            grids: Height and width of every map, coarse to fine.
        """
        head_dim = tokens.shape[-1] // self.heads
        angles = [torch.zeros(1, head_dim // 2, device=tokens.device)]
        angles += [rotary_angles(h, w, head_dim, tokens.device) for h, w in grids]
        rotation = torch.cat(angles)
        query = rotate_pairs(self._heads(self.q_norm(self.to_q(tokens))), rotation)
        key = rotate_pairs(self._heads(self.k_norm(self.to_k(tokens))), rotation)
        value = self._heads(self.to_v(tokens))
        outputs, start = [], 0
        end = 1
        for height, width in grids:
            end += height * width
            # Keys of the own map and everything coarser are a prefix: no mask is needed.
            part = F.scaled_dot_product_attention(
                query[:, :, start:end], key[:, :, :end], value[:, :, :end]
            )
            outputs.append(part)
            start = end
        return self.to_out[0](torch.cat(outputs, dim=2).transpose(1, 2).flatten(2))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SketchEncoder(ModelMixin, ConfigMixin):
    """Maps an inverted sketch to maps at 1/8, 1/16, 1/32 and 1/32 of its size.

    Args:
        block_out_channels: Widths ``C0, C1, C2`` of the U-Net's levels.
        stem_channels: Widths of the stem.
        head_dim: Head width of the multi-scale attention.
    """

    @register_to_config
    def __init__(
        self,
        block_out_channels: tuple[int, int, int] = (320, 640, 1280),
        stem_channels: tuple[int, int, int, int] = (16, 32, 96, 256),
        head_dim: int = 128,
    ) -> None:
        super().__init__()
        c0, c1, c2 = block_out_channels
        self.stem = _stem(stem_channels, c0)
        widths, strides = [(c0, c0), (c0, c1), (c1, c2)], [2, 2, 1]
        self.downsample_layers = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Conv2d(i, o, 3, stride=s, padding=1))
            for (i, o), s in zip(widths, strides, strict=True)
        )
        maps = [c0, c0, c1, c2]
        self.proj_ins = nn.ModuleList(nn.Conv2d(c, c2, 1) for c in [*maps, c2])
        self.attn_layer = MultiScaleAttention(c2, head_dim)
        self.proj_outs = nn.ModuleList(_zero(nn.Conv2d(c2, c, 1)) for c in maps)

    @classmethod
    def build(cls, config: ModelConfig) -> SketchEncoder:
        """A freshly initialised encoder."""
        encoder = config.sketch_encoder
        return cls(config.unet.block_out_channels, encoder.stem_channels, encoder.head_dim)

    def forward(self, sketch: torch.Tensor) -> list[torch.Tensor]:
        """Encodes.

        Args:
            sketch: ``B x 3 x H x W`` in [-1, 1], inverted: lines bright, -1 is empty paper.

        Returns:
            ``C0 x H/8``, ``C0 x H/16``, ``C1 x H/32``, ``C2 x H/32`` maps.
        """
        maps = [self.stem(sketch)]
        for layer in self.downsample_layers:
            maps.append(layer(maps[-1]))
        projected = [layer(x) for layer, x in zip(self.proj_ins[:4], maps, strict=True)]
        mean = self.proj_ins[4](maps[-1].mean((2, 3), keepdim=True))
        coarse_to_fine = [mean, *reversed(projected)]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in coarse_to_fine], dim=1)
        grids = [tuple(x.shape[-2:]) for x in coarse_to_fine[1:]]
        tokens = tokens + self.attn_layer(tokens, grids)
        parts = tokens[:, 1:].split([h * w for h, w in grids], dim=1)
        fine_to_coarse = zip(reversed(parts), reversed(grids), self.proj_outs, strict=True)
        return [
            layer(part.transpose(1, 2).unflatten(2, grid)) for part, grid, layer in fine_to_coarse
        ]


def _stem(stem: tuple[int, int, int, int], out_channels: int) -> nn.Sequential:
    a, b, c, d = stem
    widths = [3, a, a, b, b, c, c, d, out_channels]
    strides = [1, 1, 2, 1, 2, 1, 2, 1]
    layers: list[nn.Module] = []
    for index, stride in enumerate(strides):
        layers += [
            nn.Conv2d(widths[index], widths[index + 1], 3, stride=stride, padding=1),
            nn.SiLU(),
        ]
    layers.pop()
    _zero(layers[-1])
    return nn.Sequential(*layers)


def _zero(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
