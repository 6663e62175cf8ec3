"""ControlNet, IP-Adapter and their base of random weights, saved as diffusers saves them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.embeddings import ImageProjection
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from nurie.config.evaluate import ControlNetConfig

_WIDTH = 32
_IMAGE_TOKENS = 4


def _text_parts(folder: Path, second: bool) -> dict[str, object]:
    folder.mkdir()
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8
    )
    config = CLIPTextConfig(
        vocab_size=3, hidden_size=_WIDTH, intermediate_size=_WIDTH, projection_dim=_WIDTH,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=8,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    parts: dict[str, object] = {"tokenizer": tokenizer, "text_encoder": CLIPTextModel(config)}
    if second:
        parts |= {"tokenizer_2": tokenizer, "text_encoder_2": CLIPTextModelWithProjection(config)}
    return parts


def _unet(is_xl: bool) -> UNet2DConditionModel:
    extra = {}
    if is_xl:
        extra = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
                 "projection_class_embeddings_input_dim": 6 * 8 + _WIDTH}  # fmt: skip
    wide = 2 * _WIDTH if is_xl else _WIDTH
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
        cross_attention_dim=wide, **extra,
    )  # fmt: skip


def _ip_adapter(denoiser: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """Keys and values of image tokens for every cross-attention, named as adapters name them."""
    keys = [w for name, w in denoiser.state_dict().items() if name.endswith("attn2.to_k.weight")]
    wide = keys[0].shape[1]
    projection = ImageProjection(_WIDTH, wide, _IMAGE_TOKENS)
    found = {
        f"image_proj.{name.replace('image_embeds', 'proj')}": values
        for name, values in projection.state_dict().items()
    }
    for number, key in enumerate(keys):
        for each in ("k", "v"):
            name = f"ip_adapter.{2 * number + 1}.to_{each}_ip.weight"
            found[name] = torch.randn_like(key) / wide**0.5
    return {name: values.contiguous() for name, values in found.items()}


def tiny_controlnet(folder: Path, is_xl: bool) -> ControlNetConfig:
    """All four parts of a family, Stable Diffusion 1.5 or XL, in a folder."""
    torch.manual_seed(0)
    denoiser = _unet(is_xl)
    vae = AutoencoderKL.from_config(
        {
            "block_out_channels": (8, 16),
            "norm_num_groups": 8,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        }
    )
    parts = {
        "unet": denoiser,
        "vae": vae,
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
    }
    parts |= _text_parts(folder / "words", second=is_xl)
    if is_xl:
        StableDiffusionXLPipeline(**parts).save_pretrained(folder / "base")
    else:
        parts |= {"safety_checker": None, "feature_extractor": None}
        StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(
            folder / "base"
        )
    control = ControlNetModel.from_unet(denoiser, conditioning_embedding_out_channels=(8, 16))
    for name, parameter in control.named_parameters():
        if "controlnet" in name:  # Zero before training.
            torch.nn.init.normal_(parameter, std=0.3)
    control.save_pretrained(folder / "controlnet")
    save_file(_ip_adapter(denoiser), folder / "ip-adapter.safetensors")
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=_WIDTH,
            intermediate_size=_WIDTH,
            projection_dim=_WIDTH,
            image_size=64,
            patch_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    ).save_pretrained(folder / "image_encoder")
    return ControlNetConfig(
        base=folder / "base",
        controlnet=folder / "controlnet",
        ip_adapter=folder / "ip-adapter.safetensors",
        image_encoder=folder / "image_encoder",
        num_inference_steps=2,
        image_size=64,
    )
