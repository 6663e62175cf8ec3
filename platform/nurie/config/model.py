"""The model family: one set of classes, several sizes (``configs/model/*.yaml``)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nurie.config.base import ConfigModel


class UNetConfig(ConfigModel):
    """Denoising U-Net (method section 4), an SDXL U-Net with its own added embedding."""

    block_out_channels: tuple[int, ...] = (320, 640, 1280)
    """Width of each level, top to bottom."""
    transformer_layers: tuple[int, ...] = (0, 2, 10)
    """Transformer blocks per attention layer of each level; 0 means no attention there."""
    layers_per_block: int = Field(default=2, ge=1)
    """Residual blocks per level on the way down (one more on the way up)."""
    head_dim: int = Field(default=64, ge=1)
    """Width of one attention head."""
    norm_num_groups: int = Field(default=32, ge=1)
    """Groups of every group normalisation."""
    cross_attention_dim: int = Field(default=2048, ge=1)
    """Width of the reference tokens."""
    added_embedding_dim: int = Field(default=512, ge=2)
    """Width of the added embedding: half for the picture's area, half for its score."""

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        if len(self.block_out_channels) != len(self.transformer_layers):
            raise ValueError(
                f"transformer_layers {self.transformer_layers} needs one entry per level of "
                f"block_out_channels {self.block_out_channels}"
            )
        for width in self.block_out_channels:
            if width % self.head_dim or width % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels: {width} must be a multiple of head_dim "
                    f"{self.head_dim} and of norm_num_groups {self.norm_num_groups}"
                )
        return self


class SketchEncoderConfig(ConfigModel):
    """Sketch encoder (method section 2)."""

    stem_channels: tuple[int, int, int, int] = (16, 32, 96, 256)
    """Widths of the stem before its last convolution."""
    head_dim: int = Field(default=128, ge=4, multiple_of=4)
    """Width of one head of the multi-scale attention."""


class ReferenceConfig(ConfigModel):
    """Reference encoders and projection (method section 3)."""

    image_size: int = Field(default=224, ge=16)
    """Side of the picture the image encoder sees, in pixels."""
    patch_size: int = Field(default=14, ge=2)
    """Side of one image-encoder patch, in pixels."""
    encoder_hidden_size: int = Field(default=1664, ge=8)
    """Width of the image encoder."""
    encoder_layers: int = Field(default=48, ge=1)
    """Depth of the image encoder."""
    encoder_heads: int = Field(default=16, ge=1)
    """Attention heads of the image encoder."""
    encoder_mlp_dim: int = Field(default=8192, ge=8)
    """Width of the image encoder's feed-forward layers."""
    image_token_dim: int = Field(default=1280, ge=1)
    """Width of the image tokens after the visual projection."""
    tagger_image_size: int = Field(default=448, ge=16)
    """Side of the picture the tagger sees, in pixels."""
    tagger_token_dim: int = Field(default=1024, ge=1)
    """Width of the tagger's feature map."""
    num_tokens: int = Field(default=196, ge=1)
    """Reference tokens handed to the U-Net; also the tagger's number of map cells."""
    projection_head_dim: int = Field(default=128, ge=1)
    """Head width of the self-attention over the image tokens."""
    projection_hidden_dim: int = Field(default=2048, ge=1)
    """Hidden width of the projection's feed-forward layers."""
    use_tagger: bool = True
    """False trains without the tagger (ablation): its tokens are zeros everywhere."""


class VaeConfig(ConfigModel):
    """Architecture of the autoencoder (``diffusers.AutoencoderKL``)."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    """Width of each level; every level but the last halves the size."""
    layers_per_block: int = Field(default=2, ge=1)
    """Residual blocks per level of the encoder."""
    latent_channels: int = Field(default=4, ge=1)
    """Channels of the latents."""
    norm_num_groups: int = Field(default=32, ge=1)
    """Groups of every group normalisation."""
    mid_block_add_attention: bool = True
    """Self-attention at the lowest level."""
    scaling_factor: float = Field(default=0.13025, gt=0)
    """Start value; a trained autoencoder's own configuration has the last word."""


class DiffusionConfig(ConfigModel):
    """Noise schedule (method section 1)."""

    num_train_timesteps: int = Field(default=1000, ge=2)
    """Number of diffusion steps."""
    beta_start: float = Field(default=0.00085, gt=0, lt=1)
    """First beta of the scaled-linear schedule."""
    beta_end: float = Field(default=0.012, gt=0, lt=1)
    """Last beta of the scaled-linear schedule."""
    rescale_betas_zero_snr: bool = False
    """Shift the schedule so that the last step is pure noise."""


class SamplingConfig(ConfigModel):
    """What a picture is made with when a request does not say otherwise."""

    num_inference_steps: int = Field(default=20, ge=1)
    """Denoising steps."""
    guidance_scale: float = Field(default=2.0, ge=0)
    """Reference guidance; 1 and less is without."""
    background_strength: float = Field(default=1.0, ge=0, le=1)
    """How strongly the background adapter acts."""


class ModelConfig(ConfigModel):
    """One preset of the model family."""

    kind: Literal["model"] = "model"
    """Kind of this file."""
    name: str
    """Name of the preset."""
    image_size: int = Field(default=1024, ge=32, multiple_of=32)
    """Side of a training picture, in pixels."""
    unet: UNetConfig = UNetConfig()
    """Denoising U-Net."""
    sketch_encoder: SketchEncoderConfig = SketchEncoderConfig()
    """Sketch encoder."""
    reference: ReferenceConfig = ReferenceConfig()
    """Reference encoders and projection."""
    vae: VaeConfig = VaeConfig()
    """Autoencoder."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Noise schedule."""
    sampling: SamplingConfig = SamplingConfig()
    """The model's own sampling, kept in its folder."""
    background_embedding_dim: int = Field(default=1024, ge=4, multiple_of=4)
    """Added embedding of the background encoder: a quarter each for top, left, height, width."""
    lora_rank: int = Field(default=4, ge=1)
    """Rank of the background stage's LoRA on cross-attention queries, keys and values."""
    gram_block_ids: tuple[int, ...] = (23, 63)
    """Transformer blocks of the Gram loss, 1-based in network order."""

    @model_validator(mode="after")
    def _gram_blocks_exist(self) -> Self:
        depth, layers = self.unet.transformer_layers, self.unet.layers_per_block
        total = sum(d * (2 * layers + 1) for d in depth) + depth[-1]
        for block in self.gram_block_ids:
            if not 1 <= block <= total:
                raise ValueError(f"gram_block_ids: {block} is not in 1..{total}")
        return self
