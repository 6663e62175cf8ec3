"""Numeric comparison of our modules with references made from the published model's behaviour."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from nurie.checkpoints.released_keys import map_released_key
from nurie.config.model import (
    ModelConfig,
    ReferenceConfig,
    SketchEncoderConfig,
    UNetConfig,
    VaeConfig,
)
from nurie.models.background_encoder import BackgroundEncoder
from nurie.models.conditioning import (
    BackgroundConditioning,
    Conditioning,
    ForegroundConditioning,
    RegionMask,
    SplitAttention,
)
from nurie.models.foreground_encoder import ForegroundAdapter
from nurie.models.reference_projection import ReferenceProjection
from nurie.models.sketch_encoder import SketchEncoder
from nurie.models.unet import ColorizationUNet
from nurie.training.gram import gram_loss, gram_matrix

MAX_ABS_ERROR = 2e-4
MAX_RELATIVE_L2 = 1e-4


@dataclass(frozen=True)
class ParityRow:
    """Errors of one output tensor."""

    name: str
    max_abs: float
    relative_l2: float

    @property
    def ok(self) -> bool:
        """Whether both errors are within tolerance."""
        return self.max_abs <= MAX_ABS_ERROR and self.relative_l2 <= MAX_RELATIVE_L2


def parity_config(sizes: dict) -> ModelConfig:
    """The model configuration for the sizes in a reference file's metadata."""
    channels = sizes["model_channels"]
    return ModelConfig(
        name="parity",
        unet=UNetConfig(
            block_out_channels=(channels, 2 * channels, 4 * channels),
            transformer_layers=tuple(sizes["depth"]),
            head_dim=sizes["head_dim"],
            cross_attention_dim=sizes["context_dim"],
            added_embedding_dim=sizes["adm"],
        ),
        sketch_encoder=SketchEncoderConfig(head_dim=sizes["enc_head_dim"]),
        reference=ReferenceConfig(
            image_token_dim=sizes["clip_dim"],
            tagger_token_dim=sizes["tag_dim"],
            num_tokens=sizes["tokens"],
            projection_head_dim=sizes["proj_head_dim"],
            projection_hidden_dim=sizes["context_dim"],
        ),
        vae=VaeConfig(latent_channels=4),
        background_embedding_dim=sizes["bg_adm"],
        gram_block_ids=tuple(sizes["gram_ids"]),
    )


def load_modules(weights: dict[str, torch.Tensor], config: ModelConfig) -> dict[str, nn.Module]:
    """Builds every module and loads the released weights, every tensor of ours must be given.

    Raises:
        ValueError: Naming a component whose tensors are missing or of another shape.
    """
    modules: dict[str, nn.Module] = {
        "sketch_encoder": SketchEncoder.build(config),
        "reference_projection": ReferenceProjection.build(config),
        "unet": ColorizationUNet.build(config.unet, config.vae.latent_channels),
        "foreground_adapter": ForegroundAdapter.build(config),
        "background_encoder": BackgroundEncoder.build(config),
    }
    states: dict[str, dict[str, torch.Tensor]] = {name: {} for name in modules}
    for key, tensor in weights.items():
        mapped = map_released_key(key, config.unet.layers_per_block)
        if mapped is not None:
            states[mapped[0]][mapped[1]] = tensor.float()
    for name, module in modules.items():
        # The released background encoder carries one layer above its last transformer block;
        # nothing reads its output, so ours does not have it.
        report = module.load_state_dict(states[name], strict=False)
        unused = [k for k in report.unexpected_keys if name != "background_encoder"]
        if report.missing_keys or unused:
            raise ValueError(f"{name}: missing {report.missing_keys[:3]}, unexpected {unused[:3]}")
        module.eval()
    return modules


@torch.no_grad()
def compute_outputs(
    modules: dict[str, nn.Module], inputs: dict[str, torch.Tensor], config: ModelConfig
) -> dict[str, torch.Tensor]:
    """Every output that a reference file of this form can name."""
    features = modules["sketch_encoder"](inputs["sketch"])
    tokens = modules["reference_projection"](inputs["clip_tokens"], inputs["tag_tokens"])
    outputs: dict[str, torch.Tensor] = {"reference_tokens": tokens}
    outputs |= {f"sketch_encoder.{i}": x for i, x in enumerate(features)}
    unet, latents, timesteps = modules["unet"], inputs["latents"], inputs["timesteps"]
    base = Conditioning(inputs["added_cond"], features, tokens)

    def run(**changes: object) -> torch.Tensor:
        conditioning = Conditioning(**{**vars(base), **changes})
        return unet(latents, timesteps, conditioning).sample

    outputs["unet"] = run()
    outputs["unet_null_reference"] = run(reference_tokens=None)
    outputs |= _gram_outputs(unet, latents, timesteps, base, config)
    region = RegionMask(inputs["mask_latent"], 0.05)
    halves = torch.cat([tokens, inputs["background_tokens"]], dim=1)
    outputs["unet_split"] = run(reference_tokens=halves, split=SplitAttention(region))
    merging = SplitAttention(region, 0.3, 0.9, 0.8)
    outputs["unet_split_merge"] = run(reference_tokens=halves, split=merging)
    bank = modules["background_encoder"](
        inputs["background_encoder_input"], inputs["background_added_cond"]
    )
    outputs |= {f"background_bank.{i}": x for i, x in enumerate(bank)}
    outputs["unet_background"] = run(
        reference_tokens=halves,
        split=SplitAttention(region),
        background=BackgroundConditioning(bank, region),
    )
    foreground = modules["foreground_adapter"](inputs["foreground_latents"])
    outputs |= {f"foreground_features.{i}": x for i, x in enumerate(foreground)}
    outputs["unet_foreground"] = run(
        reference_tokens=torch.cat([tokens, tokens], dim=1),
        split=SplitAttention(region),
        foreground=ForegroundConditioning(
            foreground,
            RegionMask(inputs["foreground_mask"], 0.05),
            modules["foreground_adapter"].injection,
        ),
    )
    return outputs


def _gram_outputs(
    unet: nn.Module,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    base: Conditioning,
    config: ModelConfig,
) -> dict[str, torch.Tensor]:
    """Gram matrices and loss of the dual-branch step (misaligned: the batch rolled by one)."""
    batch = latents.shape[0]
    both = torch.cat([base.reference_tokens, base.reference_tokens.roll(1, 0)])
    conditioning = Conditioning(base.added_cond, base.sketch_features, both)
    out = unet(latents, timesteps, conditioning, capture=config.gram_block_ids, keep_branches=1)
    outputs: dict[str, torch.Tensor] = {}
    total = torch.zeros(1)
    for index, block in enumerate(config.gram_block_ids):
        aligned, misaligned = out.blocks[block].split(batch)
        outputs[f"gram_aligned.{index}"] = gram_matrix(aligned)
        outputs[f"gram_misaligned.{index}"] = gram_matrix(misaligned)
        total = total + gram_loss(misaligned, aligned)
    outputs["gram_loss"] = total
    return outputs


def check_parity(path: Path) -> Iterator[ParityRow]:
    """Compares every ``out.*`` tensor of a reference file with our modules.

    Args:
        path: A safetensors file as described in method.md section 10.

    Raises:
        ValueError: If the file lacks the metadata, or names an output we do not compute.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if "config" not in metadata:
            raise ValueError(f"{path}: no 'config' in the file's metadata")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    try:
        config = parity_config(json.loads(metadata["config"]))
    except KeyError as error:
        raise ValueError(f"{path}: the metadata's 'config' lacks {error.args[0]!r}") from None

    def group(prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    try:
        outputs = compute_outputs(load_modules(group("weights."), config), group("in."), config)
    except KeyError as error:
        raise ValueError(f"{path}: in.{error.args[0]}: missing") from None
    for name, expected in sorted(group("out.").items()):
        if name not in outputs:
            raise ValueError(f"{path}: unknown output 'out.{name}'")
        yield _row(name, outputs[name], expected.float())


def _row(name: str, ours: torch.Tensor, expected: torch.Tensor) -> ParityRow:
    if ours.shape != expected.shape:
        raise ValueError(f"out.{name}: ours is {tuple(ours.shape)}, not {tuple(expected.shape)}")
    difference = ours - expected
    relative = difference.norm() / expected.norm().clamp_min(1e-12)
    return ParityRow(name, difference.abs().max().item(), relative.item())
