"""Names of the released checkpoint's tensors and ours (method.md section 10).

| released prefix | component | our names |
|---|---|---|
| ``model.diffusion_model.`` | ``unet`` | diffusers names (``input_blocks`` > ``down_blocks`` ...) |
| ``model.diffusion_model.map_modules.`` | ``foreground_adapter`` | ``injection.layers.`` |
| ``fg_encoder.`` | ``foreground_adapter`` | diffusers names, ``zero_layers`` as they are |
| ``bg_encoder.`` | ``background_encoder`` | diffusers names |
| ``control_encoder.`` | ``sketch_encoder`` | ``model`` is ``stem``, the rest as it is |
| ``proj.`` | ``reference_projection`` | as they are |
"""

from __future__ import annotations

import re

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_FLAT = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "class_embedding.linear_1",
    "label_emb.0.2": "class_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_PREFIXES = {
    "model.diffusion_model.map_modules.": ("foreground_adapter", "injection.layers."),
    "model.diffusion_model.": ("unet", None),
    "fg_encoder.": ("foreground_adapter", None),
    "bg_encoder.": ("background_encoder", None),
    "control_encoder.model.": ("sketch_encoder", "stem."),
    "control_encoder.": ("sketch_encoder", ""),
    "proj.": ("reference_projection", ""),
}


def map_released_key(key: str, layers_per_block: int = 2) -> tuple[str, str] | None:
    """Our component and name for a released key, or None for tensors of other parts.

    Args:
        key: Name in the released checkpoint.
        layers_per_block: Residual blocks per level of the U-Nets.
    """
    for prefix, (component, replacement) in _PREFIXES.items():
        if key.startswith(prefix):
            rest = key.removeprefix(prefix)
            if replacement is not None:
                return component, replacement + rest
            return component, unet_key(rest, layers_per_block)
    return None


def unet_key(key: str, layers_per_block: int) -> str:
    """Diffusers' name of a U-Net tensor that is named in the original SDXL way."""
    for old, new in _FLAT.items():
        if key.startswith(old + "."):
            return new + key.removeprefix(old)
    match = re.match(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(.*)", key)
    if match is None:
        return key
    part, index, rest = match[1], int(match[2]), match[3]
    if part == "middle_block":
        return f"mid_block.{_MIDDLE[str(index)]}.{_inner(rest)}"
    per_level = layers_per_block + 1
    position = index - 1 if part == "input_blocks" else index
    level, layer = divmod(position, per_level)
    side = "down_blocks" if part == "input_blocks" else "up_blocks"
    slot, rest = rest.split(".", 1)
    if rest.startswith("op."):
        return f"{side}.{level}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv."):
        return f"{side}.{level}.upsamplers.0.{rest}"
    kind = "resnets" if slot == "0" else "attentions"
    return f"{side}.{level}.{kind}.{layer}.{_inner(rest)}"


def _inner(rest: str) -> str:
    for old, new in _RESNET.items():
        if rest.startswith(old + "."):
            return new + rest.removeprefix(old)
    return rest
