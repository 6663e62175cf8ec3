"""Everything the denoiser is told about a batch of pictures, computed once per picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nurie.inference.preprocess import mask_tensor, picture_tensor, sketch_tensor
from nurie.inference.request import Prepared
from nurie.inference.sampling import KeptBackground
from nurie.models.added_embedding import (
    DEFAULT_AESTHETIC_SCORE,
    FULL_CROP,
    embed_scalars,
    embed_size_and_score,
)
from nurie.models.background_encoder import BackgroundEncoder, background_input
from nurie.models.conditioning import (
    BackgroundConditioning,
    Conditioning,
    ForegroundConditioning,
    RegionMask,
    SplitAttention,
)
from nurie.models.foreground_encoder import ForegroundAdapter
from nurie.models.reference_projection import ReferenceProjection
from nurie.models.sketch_encoder import SketchEncoder, invert_sketch

EncodeImages = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Pictures ``B x H x W x 3`` uint8 to image tokens and tagger tokens."""


@dataclass(frozen=True)
class Parts:
    """The components that make a conditioning.

    Args:
        sketch_encoder: Encodes the sketch.
        reference_projection: Makes reference tokens.
        encode_images: The frozen reference encoders.
        encode_latents: The autoencoder, pixels in [-1, 1] to latents.
        foreground_adapter: None switches it off.
        encode_foreground: That adapter, reference latents to features.
        background_encoder: None switches it off.
        added_embedding_dim: Of the U-Net.
        num_blocks: Transformer blocks of the U-Net before its up path, and in it.
        device: Where the denoiser runs; offloaded components are elsewhere between their calls.
        dtype: Precision of the denoiser.
    """

    sketch_encoder: SketchEncoder
    reference_projection: ReferenceProjection
    encode_images: EncodeImages
    encode_latents: Callable[[torch.Tensor], torch.Tensor]
    foreground_adapter: ForegroundAdapter | None
    encode_foreground: Callable[[torch.Tensor], list[torch.Tensor]] | None
    background_encoder: BackgroundEncoder | None
    added_embedding_dim: int
    num_blocks: tuple[int, int]
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class Strengths:
    """Controls that act through the conditioning; see ``nurie.inference.controls``.

    Args:
        sketch: Factor of each of the four sketch features, fine to coarse.
        reference: Factor of the cross-attention in the encoder (with the middle) and the decoder.
        region: Factor of the cross-attention for foreground and background.
        merge: How much of the background's answer the foreground takes.
        foreground: Factor of the foreground adapter.
        background: Factor of the background adapter.
        mask_threshold: Sketch mask values above this are foreground.
    """

    sketch: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    reference: tuple[float, float] = (1.0, 1.0)
    region: tuple[float, float] = (1.0, 1.0)
    merge: float = 0.0
    foreground: float = 1.0
    background: float = 1.0
    mask_threshold: float = 0.05

    @classmethod
    def of(cls, values: dict[str, Any]) -> Strengths:
        """Of a call's controls."""
        sketch, reference = values["sketch_strength"], values["reference_strength"]
        fine, middle, coarse, layout = (sketch * values[f"sketch_level_{i}"] for i in range(1, 5))
        return cls(
            sketch=(fine, middle, coarse, layout),
            reference=(
                reference * values["encoder_reference_strength"],
                reference * values["decoder_reference_strength"],
            ),
            region=(
                values["foreground_reference_strength"],
                values["background_reference_strength"],
            ),
            merge=values["merge_scale"],
            foreground=values["foreground_strength"],
            background=values["background_strength"],
            mask_threshold=values["mask_threshold"],
        )


def build_conditioning(
    parts: Parts,
    pictures: list[Prepared],
    strengths: Strengths,
    *,
    guided: bool,
    separate_background: bool,
) -> Conditioning:
    """Encodes sketches, references and backgrounds; adapters run here, once per picture.

    Args:
        parts: Components.
        pictures: Prepared pictures of one size.
        strengths: Controls.
        guided: Add a branch without reference, for guidance.
        separate_background: The backgrounds are pictures of their own.
    """
    device, dtype = parts.device, parts.dtype
    sketch = invert_sketch(sketch_tensor([p.sketch for p in pictures])).to(device, dtype)
    features = parts.sketch_encoder(sketch)
    features = [factor * x for factor, x in zip(strengths.sketch, features, strict=True)]
    sketch_mask = mask_tensor([p.sketch_mask for p in pictures]).to(device, dtype)
    region = RegionMask(sketch_mask, strengths.mask_threshold)
    tokens = _tokens(parts, [p.reference for p in pictures])
    split = None
    if separate_background or strengths.region != (1, 1):
        background_tokens = tokens
        if separate_background:
            background_tokens = _tokens(parts, [p.background for p in pictures])
        tokens = torch.cat([tokens, background_tokens], dim=1)
        split = SplitAttention(region, strengths.merge, *strengths.region)
    areas = torch.tensor([p.canvas.width * p.canvas.height for p in pictures])
    scores = torch.full((len(pictures),), DEFAULT_AESTHETIC_SCORE)
    return Conditioning(
        embed_size_and_score(areas, scores, parts.added_embedding_dim).to(device, dtype),
        features,
        tokens,
        num_null_branches=1 if guided else 0,
        split=split,
        foreground=_foreground(parts, pictures, region, strengths.foreground),
        background=_background(parts, pictures, region, strengths.background),
        reference_strength=_per_block(parts, *strengths.reference),
        cache={},
    )


def _per_block(parts: Parts, encoder: float, decoder: float) -> float | list[float]:
    """The reference's strength for every transformer block; the middle belongs to the encoder."""
    if encoder == decoder:
        return encoder
    before, after = parts.num_blocks
    return [encoder] * before + [decoder] * after


def _tokens(parts: Parts, images: list) -> torch.Tensor:
    encoded = parts.encode_images(np.stack([np.asarray(image) for image in images]))
    image_tokens, tagger_tokens = (
        torch.from_numpy(tokens).to(parts.device, parts.dtype) for tokens in encoded
    )
    return parts.reference_projection(image_tokens, tagger_tokens)


def _foreground(
    parts: Parts, pictures: list[Prepared], region: RegionMask, strength: float
) -> ForegroundConditioning | None:
    adapter, encode = parts.foreground_adapter, parts.encode_foreground
    if adapter is None or encode is None or strength == 0:
        return None
    pixels = picture_tensor([p.reference for p in pictures]).to(parts.device, parts.dtype)
    mask = mask_tensor([p.reference_mask for p in pictures]).to(pixels)
    latents = parts.encode_latents(torch.where(mask > 0.5, pixels, torch.ones_like(pixels)))
    return ForegroundConditioning(encode(latents), region, adapter.injection, strength)


def _background(
    parts: Parts, pictures: list[Prepared], region: RegionMask, strength: float
) -> BackgroundConditioning | None:
    encoder = parts.background_encoder
    if encoder is None or strength == 0:
        return None
    pixels = picture_tensor([p.background for p in pictures]).to(parts.device, parts.dtype)
    masks = [p.reference_mask for p in pictures]
    latents = parts.encode_latents(pixels)
    stacked = background_input(latents, region.mask, mask_tensor(masks).to(pixels))
    crops = torch.tensor([FULL_CROP] * len(pictures))
    added = embed_scalars(crops, encoder.config.added_embedding_dim).to(pixels)
    return BackgroundConditioning(encoder(stacked, added), region, strength)


def kept_background(
    parts: Parts, pictures: list[Prepared], mask_threshold: float
) -> KeptBackground:
    """The background pictures as they are, for everything outside the sketches' foreground."""
    pixels = picture_tensor([p.background for p in pictures])
    latents = parts.encode_latents(pixels.to(parts.device, parts.dtype))
    mask = mask_tensor([p.sketch_mask for p in pictures]).to(latents)
    # A latent belongs to the foreground as soon as one of its pixels does.
    foreground = F.adaptive_max_pool2d((mask > mask_threshold).to(latents), latents.shape[-2:])
    return KeptBackground(latents, foreground)
