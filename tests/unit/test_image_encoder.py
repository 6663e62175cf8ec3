"""The image encoder: all tokens as CLIP itself treats the first one, and CLIP's pre-processing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessorPil

from nurie.config.model import ReferenceConfig
from nurie.models.image_encoder import build_image_encoder, image_tokens, preprocess

TINY = ReferenceConfig(
    image_size=32,
    patch_size=8,
    encoder_hidden_size=16,
    encoder_layers=2,
    encoder_heads=2,
    encoder_mlp_dim=32,
    image_token_dim=12,
)


@pytest.fixture
def encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_image_encoder(TINY).eval().requires_grad_(False)


def random_images(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_tokens_are_projected_like_clips_own(encoder):
    pixels = preprocess(random_images(2, 32), 32)

    tokens = image_tokens(encoder, pixels)

    assert tokens.shape == (2, 1 + 16, 12)
    own = encoder(pixels)
    torch.testing.assert_close(tokens[:, 0], own.image_embeds)
    hidden = encoder.vision_model.post_layernorm(own.last_hidden_state)
    torch.testing.assert_close(tokens, encoder.visual_projection(hidden))


def test_preprocessing_equals_clips(encoder):
    images = random_images(2, 80)
    processor = CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, do_center_crop=False, do_resize=True
    )
    expected = processor(list(images), return_tensors="pt")["pixel_values"]

    pixels = preprocess(images, 32)

    assert pixels.dtype == torch.float32
    # PIL rounds to whole grey levels, twice.
    assert (pixels - expected).abs().max() < 1.5 / 255 / 0.26


def test_other_pictures_are_refused():
    with pytest.raises(ValueError, match=r"images must be uint8 \[B, H, W, 3\], got float32"):
        preprocess(np.zeros((1, 8, 8, 3), np.float32), 8)
