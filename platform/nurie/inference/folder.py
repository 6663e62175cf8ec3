"""A pipeline as a folder: one sub-folder per component, safetensors, ONNX and JSON only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import AutoencoderKL, ModelMixin
from torch import nn
from transformers import CLIPVisionModelWithProjection
from transformers.utils import logging as transformers_logging

from nurie.checkpoints.manifest import write_manifest
from nurie.config.model import ModelConfig
from nurie.data.tagger import Tagger
from nurie.inference.scheduler import build_scheduler
from nurie.models.background_encoder import BackgroundEncoder
from nurie.models.colorizer import LORA_FOLDER, LORA_NAME, add_background_lora
from nurie.models.folders import load_lora, load_part, save_lora, save_part
from nurie.models.foreground_encoder import ForegroundAdapter
from nurie.models.reference_projection import ReferenceProjection
from nurie.models.sketch_encoder import SketchEncoder
from nurie.models.unet import ColorizationUNet

# A bar per component says nothing; commands show bars of their own.
transformers_logging.disable_progress_bar()

if TYPE_CHECKING:
    from nurie.inference.pipeline import ColorizationPipeline

REQUIRED: dict[str, type[ModelMixin]] = {
    "unet": ColorizationUNet,
    "sketch_encoder": SketchEncoder,
    "reference_projection": ReferenceProjection,
}
OPTIONAL: dict[str, type[ModelMixin]] = {
    "foreground_adapter": ForegroundAdapter,
    "background_encoder": BackgroundEncoder,
}
FROZEN = ("vae", "image_encoder", "tagger")
"""Components that training does not change."""
OWN_SETTINGS = (
    "default_size",
    "default_num_inference_steps",
    "default_guidance_scale",
    "default_background_strength",
    "use_tagger",
)
"""Settings of a pipeline that its folder keeps."""
OWN_CONTROLS = ("num_inference_steps", "guidance_scale", "background_strength")
"""Controls whose default is the model's own."""


def own_settings(config: ModelConfig) -> dict[str, Any]:
    """The settings that a pipeline of this preset keeps in its folder."""
    values = (
        config.image_size,
        config.sampling.num_inference_steps,
        config.sampling.guidance_scale,
        config.sampling.background_strength,
        config.reference.use_tagger,
    )
    return dict(zip(OWN_SETTINGS, values, strict=True))


def load_frozen_parts(folder: Path) -> dict[str, Any]:
    """Loads autoencoder, image encoder and tagger of a model folder."""
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    encoder = CLIPVisionModelWithProjection.from_pretrained(
        folder / "image_encoder", dtype=torch.float32
    )
    return {
        "vae": vae.eval(),
        "image_encoder": encoder.eval(),
        "tagger": Tagger.from_folder(folder / "tagger"),
    }


def load_pipeline_parts(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Loads the arguments of a pipeline from its folder.

    Raises:
        FileNotFoundError: Naming the missing component.
    """
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise FileNotFoundError(f"{index_file}: missing, so {folder} is no model folder")
    index = json.loads(index_file.read_text())
    parts = load_frozen_parts(folder)
    for name, kind in {**REQUIRED, **OPTIONAL}.items():
        if (folder / name).is_dir():
            parts[name] = _load(kind, folder / name)
        elif name in REQUIRED:
            raise FileNotFoundError(f"{folder / name}: missing in the model folder")
    if (folder / LORA_FOLDER).is_dir():
        config = json.loads((folder / LORA_FOLDER / "config.json").read_text())
        add_background_lora(parts["unet"], config["rank"])
        load_lora(parts["unet"], LORA_NAME, folder / LORA_FOLDER)
    for name in ("vae", "image_encoder", *REQUIRED, *OPTIONAL):
        if name in parts:
            # Not the method of diffusers' class, which warns of layers that stay in fp32: of none.
            nn.Module.to(parts[name], dtype)
    kind = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    parts["scheduler"] = getattr(diffusers, kind).from_pretrained(folder / "scheduler")
    return parts | {name: index[name] for name in OWN_SETTINGS if name in index}


def _load(kind: type[ModelMixin], folder: Path) -> ModelMixin:
    part = kind.from_config(kind.load_config(folder))
    load_part(part, folder)
    return part.eval()


def save_pipeline_parts(
    pipeline: ColorizationPipeline, folder: Path, dtype: torch.dtype | None
) -> None:
    """Writes every component of a pipeline."""
    for name in (*REQUIRED, *OPTIONAL):
        part = getattr(pipeline, name)
        if part is not None:
            save_part(part, folder / name, dtype)
    if LORA_NAME in getattr(pipeline.unet, "peft_config", {}):
        save_lora(pipeline.unet, LORA_NAME, folder / LORA_FOLDER, dtype)
    save_part(pipeline.vae, folder / "vae", dtype)
    encoder = pipeline.image_encoder
    weights = {name: tensor.to(dtype) for name, tensor in encoder.state_dict().items()}
    encoder.save_pretrained(folder / "image_encoder", state_dict=weights)
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    pipeline.tagger.save(folder / "tagger")


def complete_folder(folder: Path, components: Path, config: ModelConfig) -> str:
    """Make trained parts a whole model folder: frozen parts, scheduler, index and manifest.

    Args:
        folder: Holds ``unet``, ``sketch_encoder`` and ``reference_projection``.
        components: Model folder whose frozen parts are copied.
        config: The preset of the trained parts.

    Returns:
        The digest of the manifest.

    Raises:
        FileNotFoundError: Naming the component that is missing.
    """
    for name in FROZEN:
        if not (components / name).is_dir():
            raise FileNotFoundError(f"{components / name}: missing")
        shutil.copytree(components / name, folder / name, dirs_exist_ok=True)
    build_scheduler(config.diffusion).save_pretrained(folder / "scheduler")
    kinds = {**REQUIRED, **OPTIONAL, "vae": AutoencoderKL}
    index = {
        "_class_name": "ColorizationPipeline",
        **own_settings(config),
        **{
            name: [kind.__module__, kind.__name__]
            for name, kind in kinds.items()
            if (folder / name).is_dir()
        },
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")
    return write_manifest(folder)
