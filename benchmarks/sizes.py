"""What is measured: a model and one batch for it, on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from nurie.config.model import (
    ModelConfig,
    ReferenceConfig,
    SketchEncoderConfig,
    UNetConfig,
    VaeConfig,
)
from nurie.models.conditioning import Conditioning
from nurie.models.sketch_encoder import SketchEncoder
from nurie.models.unet import ColorizationUNet

_Module = TypeVar("_Module", bound=nn.Module)

SMALL = ModelConfig(
    name="benchmark",
    unet=UNetConfig(
        block_out_channels=(64, 128, 256),
        head_dim=32,
        cross_attention_dim=256,
        added_embedding_dim=64,
    ),
    sketch_encoder=SketchEncoderConfig(head_dim=64),
    reference=ReferenceConfig(num_tokens=196),
    vae=VaeConfig(block_out_channels=(32, 32, 64, 64), layers_per_block=1),
)
"""Shaped like SDXL and 25 times cheaper: a fifth of the width, the same depth."""


@dataclass(frozen=True)
class Problem:
    """A model with random weights and one batch of random inputs.

    Args:
        config: The model.
        batch: Samples.
        side: Side of the latents.
        device: Where it runs.
        dtype: Precision of weights and inputs.
    """

    config: ModelConfig = SMALL
    batch: int = 2
    side: int = 32
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def normal(self, *shape: int, seed: int) -> torch.Tensor:
        """Normal values that depend on the seed only."""
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return values.to(self.device, self.dtype)

    def placed(self, module: _Module) -> _Module:
        """The module on the device, in the precision."""
        return module.to(self.device, self.dtype)

    def denoiser(self) -> ColorizationUNet:
        """A randomly initialised denoiser."""
        torch.manual_seed(0)
        with torch.device(self.device):
            unet = ColorizationUNet.build(self.config.unet, self.config.vae.latent_channels)
        return self.placed(unet)

    def sketch_encoder(self) -> SketchEncoder:
        """A randomly initialised sketch encoder."""
        torch.manual_seed(1)
        with torch.device(self.device):
            encoder = SketchEncoder.build(self.config)
            for parameter in encoder.parameters():
                if not parameter.any():  # its last layers start at zero, which compares nothing
                    torch.nn.init.normal_(parameter, std=0.02)
        return self.placed(encoder)

    def latents(self) -> torch.Tensor:
        """Noisy latents of the batch."""
        channels = self.config.vae.latent_channels
        return self.normal(self.batch, channels, self.side, self.side, seed=4)

    def timesteps(self) -> torch.Tensor:
        """A timestep per sample."""
        return torch.linspace(100, 800, self.batch, device=self.device).long()

    def sketch(self) -> torch.Tensor:
        """Sketches of the batch."""
        return self.normal(self.batch, 3, 8 * self.side, 8 * self.side, seed=5)

    def reference(self, seed: int = 3) -> torch.Tensor:
        """Reference tokens of the batch."""
        tokens, width = self.config.reference.num_tokens, self.config.unet.cross_attention_dim
        return self.normal(self.batch, tokens, width, seed=seed)

    def conditioning(self, features: list[torch.Tensor] | None) -> Conditioning:
        """Conditioning of the batch."""
        added = self.normal(self.batch, self.config.unet.added_embedding_dim, seed=2)
        return Conditioning(added, features, self.reference())
