"""Reading and writing components as diffusers folders (``config.json`` + safetensors).

A U-Net that carries a LoRA (peft) is written as its plain weights; the LoRA has its own folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import ModelMixin
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import nn

LORA_FILE = "pytorch_lora_weights.safetensors"


def plain_name(key: str) -> str:
    """Name of a tensor in a network without LoRA."""
    return key.replace(".base_layer", "")


def plain_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """All tensors but the LoRA's, under the names of a network without LoRA."""
    return {
        plain_name(key): value for key, value in module.state_dict().items() if ".lora_" not in key
    }


def save_part(part: ModelMixin, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Writes one component.

    Args:
        part: The component.
        folder: Its folder; made if needed.
        dtype: Precision of the file (None: as it is).
    """
    folder.mkdir(parents=True, exist_ok=True)
    part.save_config(folder)
    _write(plain_state(part), folder / SAFETENSORS_WEIGHTS_NAME, dtype)


def load_part(part: ModelMixin, folder: Path) -> None:
    """Loads one component; every tensor must be there with the right shape.

    Raises:
        ValueError: Naming the file and the first tensors that do not fit.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    given, wanted = load_file(path), plain_state(part)
    missing = sorted(wanted.keys() - given.keys())
    unknown = sorted(given.keys() - wanted.keys())
    if missing or unknown:
        raise ValueError(
            f"{path}: is not of this model: {len(missing)} tensors missing {missing[:2]}, "
            f"{len(unknown)} unknown {unknown[:2]}"
        )
    with torch.no_grad():
        for key, target in wanted.items():
            if given[key].shape != target.shape:
                raise ValueError(
                    f"{path}: {key} is {tuple(given[key].shape)}, the model's is "
                    f"{tuple(target.shape)}"
                )
            target.copy_(given[key])


def save_lora(network: nn.Module, name: str, folder: Path, dtype: torch.dtype | None) -> None:
    """Writes a network's LoRA in peft's format."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(network, adapter_name=name)
    write_lora(tensors, network.peft_config[name].r, folder, dtype)  # type: ignore[index]


def write_lora(
    tensors: dict[str, torch.Tensor], rank: int, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Writes the tensors of a LoRA, under peft's names, and its rank."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"rank": rank}))
    _write(tensors, folder / LORA_FILE, dtype)


def load_lora(network: nn.Module, name: str, folder: Path) -> None:
    """Loads a LoRA into a network that already has an adapter of this name.

    Raises:
        ValueError: If the file's tensors do not belong to the network.
    """
    from peft import set_peft_model_state_dict

    tensors = load_file(folder / LORA_FILE)
    report = set_peft_model_state_dict(network, tensors, adapter_name=name)
    if report.unexpected_keys:
        raise ValueError(f"{folder / LORA_FILE}: unknown tensors {report.unexpected_keys[:2]}")


def _write(tensors: dict[str, torch.Tensor], path: Path, dtype: torch.dtype | None) -> None:
    save_file({k: v.detach().to("cpu", dtype).contiguous() for k, v in tensors.items()}, path)
