"""A peer from weights of the user's: ControlNet for the lines, an IP-Adapter for the colours."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from nurie.config.evaluate import ControlNetConfig
from nurie.data.manifest import file_sha256
from nurie.evaluation.networks import NetworkError

CONTROLNET = "controlnet_ip_adapter"
"""Name of the peer in tables."""

_MULTIPLE = 8
_READ = {".json", ".safetensors", ".txt", ".model"}


class ControlNetPeer:
    """Colours sketches with Stable Diffusion 1.5 or XL; nothing is fetched.

    Args:
        config: Weights and settings.
        device: ``cpu`` or ``cuda``, where it computes in fp16.

    Raises:
        NetworkError: A part is missing or does not go with the others.
    """

    def __init__(self, config: ControlNetConfig, device: str) -> None:
        from diffusers import AutoPipelineForText2Image, ControlNetModel
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

        self.config = config
        dtype = torch.float16 if device == "cuda" else torch.float32
        local: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
        try:
            encoder = CLIPVisionModelWithProjection.from_pretrained(
                config.image_encoder, dtype=dtype, **local
            )
            side = encoder.config.image_size
            self.pipeline = AutoPipelineForText2Image.from_pretrained(
                config.base,
                controlnet=ControlNetModel.from_pretrained(
                    config.controlnet, torch_dtype=dtype, **local
                ),
                image_encoder=encoder,
                feature_extractor=CLIPImageProcessor(size=side, crop_size=side),
                torch_dtype=dtype,
                **local,
            )
            self.pipeline.load_ip_adapter(
                str(config.ip_adapter.parent),
                subfolder="",
                weight_name=config.ip_adapter.name,
                image_encoder_folder=None,
                local_files_only=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise NetworkError(
                f"controlnet: base, controlnet, ip_adapter and image_encoder must be of one family "
                f"(Stable Diffusion 1.5 or XL), saved as safetensors: {error}"
            ) from error
        self.pipeline.set_ip_adapter_scale(config.ip_adapter_scale)
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.to(device)

    def __call__(self, sketch: np.ndarray, reference: np.ndarray, seed: int) -> np.ndarray:
        """Colour a sketch uint8 [H, W] (dark lines on white) with a reference uint8 [h, w, 3]."""
        height, width = sketch.shape
        lines = 255 - sketch if self.config.lines == "white" else sketch
        output = self.pipeline(
            prompt=self.config.prompt,
            negative_prompt=self.config.negative_prompt,
            image=Image.fromarray(lines).convert("RGB").resize(self._size(width, height)),
            ip_adapter_image=Image.fromarray(reference),
            num_inference_steps=self.config.num_inference_steps,
            guidance_scale=self.config.guidance_scale,
            controlnet_conditioning_scale=self.config.controlnet_scale,
            generator=torch.Generator().manual_seed(seed),
        )
        made = np.asarray(output.images[0].convert("RGB"))
        return cv2.resize(made, (width, height), interpolation=cv2.INTER_AREA)

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height while it is coloured: the sketch's form, in whole latents."""
        own = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        scale = (self.config.image_size or own) / max(width, height)
        sides = (max(1, round(side * scale / _MULTIPLE)) * _MULTIPLE for side in (width, height))
        return next(sides), next(sides)


def controlnet_digest(config: ControlNetConfig | None) -> dict[str, str]:
    """SHA-256 of all files and settings of the peer, by its name; empty without one.

    Raises:
        NetworkError: A path does not exist.
    """
    if config is None:
        return {}
    parts = {"base": config.base, "controlnet": config.controlnet}
    parts |= {"ip_adapter": config.ip_adapter, "image_encoder": config.image_encoder}
    found = hashlib.sha256(config.model_dump_json(exclude=set(parts)).encode())
    for name, path in parts.items():
        for file in _files(name, path):
            found.update(f"{file_sha256(file)} {name} {file.relative_to(path)}\n".encode())
    return {CONTROLNET: found.hexdigest()}


def _files(name: str, path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [file for file in files if file.is_file() and file.suffix in _READ]
    if not any(file.suffix == ".safetensors" for file in files):
        raise NetworkError(f"controlnet.{name}: {path} holds no safetensors")
    return files
