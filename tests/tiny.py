"""A tiny colorizer with random weights in every layer, and inputs for it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from nurie.config.loader import load_config
from nurie.config.model import ModelConfig
from nurie.data.tags import all_tags
from nurie.models.autoencoder import build_vae
from nurie.models.colorizer import ColorizationModel
from nurie.models.image_encoder import build_image_encoder
from nurie.models.tagger_network import TaggerNetwork
from nurie.training.tagger_export import export_tagger

CONFIGS = Path(__file__).parents[1] / "configs"


def tiny_config() -> ModelConfig:
    config = load_config(CONFIGS / "model" / "tiny.yaml")
    assert isinstance(config, ModelConfig)
    return config


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random values everywhere, so that zero-initialised layers take part."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if parameter.ndim == 1:
                parameter.add_(0.5)
    return module


def tiny_model(seed: int = 0, adapters: bool = False) -> ColorizationModel:
    model = ColorizationModel(tiny_config())
    if adapters:
        model.add_foreground_adapter()
        model.add_background_encoder()
    randomise(model, seed)
    return model


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny_components(folder: Path) -> Path:
    """Untrained frozen parts of the tiny preset, as a model folder."""
    reference = tiny_config().reference
    torch.manual_seed(0)
    build_vae(tiny_config().vae).save_pretrained(folder / "vae")
    build_image_encoder(reference).save_pretrained(folder / "image_encoder")
    tags = torch.ones(1, len(all_tags()))
    tagger = TaggerNetwork(len(all_tags()), reference.tagger_token_dim)
    export_tagger(tagger, reference.tagger_image_size, tags, folder / "tagger")
    return folder
