"""Image encoder: a CLIP vision tower, all of whose tokens are used (method section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

if TYPE_CHECKING:
    from nurie.config.model import ReferenceConfig

# The means and deviations every published CLIP was trained with.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def build_image_encoder(config: ReferenceConfig) -> CLIPVisionModelWithProjection:
    """Return a fresh image encoder of the preset's architecture."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=config.encoder_hidden_size,
            num_hidden_layers=config.encoder_layers,
            num_attention_heads=config.encoder_heads,
            intermediate_size=config.encoder_mlp_dim,
            projection_dim=config.image_token_dim,
            hidden_act="gelu",
        )
    )


def image_tokens(
    encoder: CLIPVisionModelWithProjection, pixel_values: torch.Tensor
) -> torch.Tensor:
    """Encode pictures to tokens: one of the whole picture, then one per patch in row-major order.

    CLIP itself normalises and projects the first token only; here all of them are.

    Args:
        encoder: The image encoder.
        pixel_values: Result of :func:`preprocess`, B x 3 x S x S.

    Returns:
        Tokens, B x (1 + patches) x image_token_dim.
    """
    hidden = encoder.vision_model(pixel_values).last_hidden_state
    return encoder.visual_projection(encoder.vision_model.post_layernorm(hidden))


def preprocess(images: np.ndarray, size: int) -> torch.Tensor:
    """Resize pictures to a square and normalise them as CLIP expects.

    Args:
        images: sRGB pictures, uint8 [B, H, W, 3].
        size: Side of the result in pixels.

    Returns:
        float32 B x 3 x size x size.

    Raises:
        ValueError: If the pictures are not uint8 RGB.
    """
    pixels = resize(images, size)
    mean = pixels.new_tensor(_CLIP_MEAN).view(1, 3, 1, 1)
    std = pixels.new_tensor(_CLIP_STD).view(1, 3, 1, 1)
    return (pixels - mean) / std


def resize(images: np.ndarray, size: int) -> torch.Tensor:
    """Resize pictures to a square, bicubic with antialias.

    Args:
        images: sRGB pictures, uint8 [B, H, W, 3].
        size: Side of the result in pixels.

    Returns:
        float32 B x 3 x size x size in [0, 1].

    Raises:
        ValueError: If the pictures are not uint8 RGB.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be uint8 [B, H, W, 3], got {images.dtype} {images.shape}")
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    if pixels.shape[2:] == (size, size):
        return pixels
    return F.interpolate(
        pixels, (size, size), mode="bicubic", align_corners=False, antialias=True
    ).clamp(0, 1)
