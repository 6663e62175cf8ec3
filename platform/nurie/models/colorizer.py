"""The trainable parts of a colorizer in one module, and their folder form."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import ModelMixin
from torch import nn

from nurie.config.model import ModelConfig
from nurie.models.background_encoder import BackgroundEncoder
from nurie.models.folders import load_lora, load_part, save_lora, save_part
from nurie.models.foreground_encoder import ForegroundAdapter
from nurie.models.reference_projection import ReferenceProjection
from nurie.models.sketch_encoder import SketchEncoder
from nurie.models.unet import ColorizationUNet

LORA_NAME = "background"
"""Name of the background stage's LoRA on the U-Net (peft)."""
ADAPTERS = ("foreground_adapter", "background_encoder")
"""Folders of the adapters in a model folder."""
LORA_FOLDER = "background_lora"
"""Folder of that LoRA in a model folder."""


BACKGROUND_TARGETS = ("attn2.to_q", "attn2.to_k", "attn2.to_v")
"""Layers that the background LoRA changes: queries, keys and values of cross-attention."""
ATTENTION_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""All layers of both attentions."""


def add_lora(unet: ColorizationUNet, rank: int, name: str, targets: Sequence[str]) -> None:
    """Adds a fresh LoRA to the layers whose names end so; what it adds is scaled by 1."""
    from peft import LoraConfig

    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)), adapter_name=name
    )


def add_background_lora(unet: ColorizationUNet, rank: int) -> None:
    """Adds a fresh LoRA to the queries, keys and values of the U-Net's cross-attention."""
    add_lora(unet, rank, LORA_NAME, BACKGROUND_TARGETS)


@contextmanager
def use_lora(unet: ColorizationUNet, *, active: bool) -> Iterator[None]:
    """Runs the body with or without the background LoRA; a U-Net without one is left alone."""
    has_lora = LORA_NAME in getattr(unet, "peft_config", {})
    if has_lora and not active:
        unet.disable_adapters()
    try:
        yield
    finally:
        if has_lora and not active:
            unet.enable_adapters()


class ColorizationModel(nn.Module):
    """Backbone (U-Net, sketch encoder, reference projection) and optional adapters.

    Args:
        config: The preset.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = ColorizationUNet.build(config.unet, config.vae.latent_channels)
        self.sketch_encoder = SketchEncoder.build(config)
        self.reference_projection = ReferenceProjection.build(config)
        self.foreground_adapter: ForegroundAdapter | None = None
        self.background_encoder: BackgroundEncoder | None = None

    def add_foreground_adapter(self) -> ForegroundAdapter:
        """Adds a fresh foreground adapter, or returns the one there is.

        The encoder starts from the U-Net's own encoder half, as the features it must produce are
        meant for the U-Net's skips.
        """
        if self.foreground_adapter is None:
            self.foreground_adapter = ForegroundAdapter.build(self.config)
            _copy_common(self.unet, self.foreground_adapter)
        return self.foreground_adapter

    def add_background_encoder(self) -> BackgroundEncoder:
        """Adds a fresh background encoder and its LoRA, or returns the one there is."""
        if self.background_encoder is None:
            self.background_encoder = BackgroundEncoder.build(self.config)
            _copy_common(self.unet, self.background_encoder)
            add_background_lora(self.unet, self.config.lora_rank)
        return self.background_encoder

    def parts(self) -> dict[str, ModelMixin]:
        """The components by folder name."""
        named = {
            "unet": self.unet,
            "sketch_encoder": self.sketch_encoder,
            "reference_projection": self.reference_projection,
            "foreground_adapter": self.foreground_adapter,
            "background_encoder": self.background_encoder,
        }
        return {name: part for name, part in named.items() if part is not None}

    def enable_gradient_checkpointing(self) -> None:
        """Compute every block of U-Net and adapters again in the backward pass."""
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = True

    def load(self, folder: Path, adapters: Collection[str] = ADAPTERS) -> None:
        """Loads every component that a model folder has, adding adapters as needed.

        Args:
            folder: A folder written by ``save`` or by the pipeline.
            adapters: Adapters that are wanted; others of the folder are left out.

        Raises:
            ValueError: If tensors are missing, unknown or of another shape.
        """
        wanted = {name for name in adapters if (folder / name).is_dir()}
        if "foreground_adapter" in wanted:
            self.add_foreground_adapter()
        if "background_encoder" in wanted:
            self.add_background_encoder()
        for name, part in self.parts().items():
            if (folder / name).is_dir():
                load_part(part, folder / name)
        if "background_encoder" in wanted and (folder / LORA_FOLDER).is_dir():
            load_lora(self.unet, LORA_NAME, folder / LORA_FOLDER)

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Writes every component with ``save_pretrained`` (safetensors).

        Args:
            folder: Target folder.
            dtype: Precision of the files (None: as they are).
        """
        for name, part in self.parts().items():
            save_part(part, folder / name, dtype)
        if self.background_encoder is not None:
            save_lora(self.unet, LORA_NAME, folder / LORA_FOLDER, dtype)


def _copy_common(source: nn.Module, target: nn.Module) -> None:
    """Copies the tensors that have the same name and shape in both modules."""
    own = target.state_dict()
    common = {
        key: value
        for key, value in source.state_dict().items()
        if key in own and own[key].shape == value.shape
    }
    target.load_state_dict(common, strict=False)
