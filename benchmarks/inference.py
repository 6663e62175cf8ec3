"""Denoising with guidance against diffusers' ControlNet and IP-Adapter on the same U-Net size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from benchmarks.measure import Row, compare
from benchmarks.sizes import Problem
from nurie.inference.scheduler import build_scheduler
from nurie.models.conditioning import Conditioning
from nurie.models.unet import ColorizationUNet

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
GUIDANCE = 2.0
_IMAGE_TOKENS = 4


def run(problem: Problem, steps: int = 5, rounds: int = 3) -> Row:
    """Measure a whole denoising loop; decoding is the same for both and left out."""
    unet, encoder = problem.denoiser().eval(), problem.sketch_encoder().eval()
    sketch = problem.sketch()

    def ours() -> torch.Tensor:
        with torch.no_grad():
            return denoise(problem, steps, guided(problem, unet, encoder(sketch)))

    def plain() -> torch.Tensor:
        """Guidance in two whole branches, with our model: the result must be the same."""
        with torch.no_grad():
            given = problem.conditioning(encoder(sketch))
            return denoise(problem, steps, lambda x, t: _two_passes(unet, given, x, t))

    theirs = controlnet_with_ip_adapter(problem, unet)
    difference = (ours() - plain()).abs().max()
    times = compare(ours, lambda: denoise(problem, steps, theirs), rounds, problem.device)
    name = f"denoising, {steps} steps with guidance | diffusers ControlNet + IP-Adapter"
    return Row(name, *times, 1.35, f"plain guidance {difference:.0e}")


def guided(problem: Problem, unet: ColorizationUNet, features: list[torch.Tensor]) -> Predict:
    """Guidance as the pipeline does it: one call, a null branch, cached reference keys."""
    given = replace(problem.conditioning(features), num_null_branches=1, cache={})
    return lambda latents, timestep: unet(latents, timestep, given).sample


def denoise(problem: Problem, steps: int, predict: Predict) -> torch.Tensor:
    """The sampling loop with guidance."""
    scheduler = build_scheduler(problem.config.diffusion)
    scheduler.set_timesteps(steps, device=problem.device)
    latents = problem.latents()
    for timestep in scheduler.timesteps:
        with_reference, without = predict(latents, timestep).chunk(2)
        prediction = without + GUIDANCE * (with_reference - without)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    return latents


def _two_passes(
    unet: ColorizationUNet, given: Conditioning, latents: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    assert given.reference_tokens is not None
    zeros = replace(given, reference_tokens=torch.zeros_like(given.reference_tokens))
    return torch.cat([unet(latents, timestep, c).sample for c in (given, zeros)])


def controlnet_with_ip_adapter(problem: Problem, unet: ColorizationUNet) -> Predict:
    """What diffusers' SDXL ControlNet pipeline computes in a step, with an IP-Adapter loaded."""
    with torch.device(problem.device):
        stock = UNet2DConditionModel.from_config(unet.config)
        assert isinstance(stock, UNet2DConditionModel)
        control = ControlNetModel.from_unet(stock).eval()
    stock.encoder_hid_proj = None
    stock._load_ip_adapter_weights([_ip_adapter(stock)])
    stock, control = problem.placed(stock).eval(), problem.placed(control)
    rows, width = 2 * problem.batch, problem.config.unet.cross_attention_dim
    text = problem.normal(rows, 77, width, seed=7)
    picture = problem.normal(rows, 1, 1, width, seed=8)[:, 0]
    added = problem.normal(rows, problem.config.unet.added_embedding_dim, seed=9)
    both = torch.cat([problem.sketch()] * 2)

    @torch.no_grad()
    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        doubled = torch.cat([latents, latents])
        down, middle = control(doubled, timestep, text, both, class_labels=added, return_dict=False)
        return stock(
            doubled,
            timestep,
            text,
            class_labels=added,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            added_cond_kwargs={"image_embeds": [picture]},
        ).sample

    return predict


def _ip_adapter(unet: UNet2DConditionModel) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights in the form of a published IP-Adapter (4 image tokens)."""
    width = unet.config["cross_attention_dim"]
    layers: dict[str, torch.Tensor] = {}
    number = 1
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            inner = module.to_q.out_features
            layers[f"{number}.to_k_ip.weight"] = torch.randn(inner, width) * width**-0.5
            layers[f"{number}.to_v_ip.weight"] = torch.randn(inner, width) * width**-0.5
            number += 2
    projection = {
        "proj.weight": torch.randn(_IMAGE_TOKENS * width, width) * width**-0.5,
        "proj.bias": torch.zeros(_IMAGE_TOKENS * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projection, "ip_adapter": layers}
