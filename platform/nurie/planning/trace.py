"""One training step of the real stage without memory: what it computes, and what it holds.

Weights and batch are fake tensors: they have shapes, types and lifetimes, but no content. The
stage's own forward pass and autograd's own backward pass run on them, so every saving of the method
and every tensor that autograd keeps is counted as it happens; nothing is derived from the sizes of
a preset.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from nurie.config.model import ModelConfig
from nurie.config.train import DualBranchStage, Stage
from nurie.models.autoencoder import build_vae, encode_latents
from nurie.models.colorizer import ColorizationModel
from nurie.training.batch import TrainBatch, make_batch
from nurie.training.draws import row_generators
from nurie.training.stages import TrainingStage, build_stage

_aten: Any = torch.ops.aten


def meta_stage(
    model: ModelConfig, settings: Stage, dtype: torch.dtype
) -> tuple[TrainingStage, AutoencoderKL]:
    """The stage's module and the frozen autoencoder, on the meta device.

    Args:
        model: The preset.
        settings: The stage.
        dtype: Precision of the weights; the autoencoder's stay in fp32, as in a training worker.
    """
    with torch.device("meta"):
        vae = build_vae(model.vae).requires_grad_(False)
        stage = build_stage(
            ColorizationModel(model), settings, lambda pixels: encode_latents(vae, pixels)
        )
    return stage.to(dtype), vae


@dataclass(frozen=True)
class StepTrace:
    """What one micro-batch costs on one device.

    Args:
        forward_flops: Of the forward pass; a multiplication and an addition are two.
        backward_flops: Of the backward pass.
        activation_bytes: Batch, activations and temporary tensors, at their peak.
        step_bytes: The same together with the gradients there are, at the peak of both.
    """

    forward_flops: int
    backward_flops: int
    activation_bytes: int
    step_bytes: int


def trace_step(
    model: ModelConfig,
    settings: Stage,
    step: int,
    micro_batch: int,
    weights: torch.dtype = torch.float32,
    autocast: bool = False,
    recompute: bool = False,
) -> StepTrace:
    """Runs forward and backward pass of one micro-batch on fake tensors.

    Args:
        model: The preset.
        settings: The stage.
        step: Optimizer step, which decides whether the Gram loss is on.
        micro_batch: Samples.
        weights: Precision of the weights.
        autocast: Whether operations cast to bf16.
        recompute: Whether blocks are computed again in the backward pass.
    """
    stage, vae = meta_stage(model, settings, weights)
    stage.autocast_dtype = torch.bfloat16 if autocast else None
    if recompute:
        stage.model.enable_gradient_checkpointing()
    with FakeTensorMode():
        for module in (stage, vae):
            _make_fake(module)
        stage.alphas_cumprod = torch.empty(model.diffusion.num_train_timesteps)
        count = StepCount([*stage.parameters(), *stage.buffers(), *vae.parameters()])
        for _, parameter in stage.trained_parameters():
            parameter.register_post_accumulate_grad_hook(count.mark_gradient)
        with count:
            batch = example_batch(model, settings, micro_batch)
            loss = stage(batch, step, row_generators(0, "plan", step, range(micro_batch))).total
            forward = count.flops
            loss.backward()
    return StepTrace(forward, count.flops - forward, count.peak_without_gradients, count.peak)


def _make_fake(module: nn.Module) -> None:
    """Replaces the meta tensors of a module by fake ones of the CPU.

    On the meta device attention would be the unfused one, with a matrix of all scores.
    """
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                part._parameters[name] = nn.Parameter(fake, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def example_batch(model: ModelConfig, settings: Stage, size: int) -> TrainBatch:
    """A batch of the shapes and types that the data pipeline delivers for a stage.

    Args:
        model: The preset, for all sizes.
        settings: The stage, whose kind decides the columns.
        size: Samples.
    """
    side, reference = model.image_size, model.reference
    patches = (reference.image_size // reference.patch_size) ** 2
    tokens = {
        "image_tokens": torch.zeros(size, patches + 1, reference.image_token_dim),
        "tagger_tokens": torch.zeros(size, reference.num_tokens, reference.tagger_token_dim),
    }
    columns = {
        "latents": torch.zeros(
            size, model.vae.latent_channels, side // 8, side // 8, dtype=torch.float16
        ),
        "original_area": torch.ones(size),
        "aesthetic_score": torch.ones(size),
        **{name: _pixels(size, side, side) for name in ("sketch", "foreground_mask")},
        **tokens,
    }
    if isinstance(settings, DualBranchStage):
        columns |= {f"mismatched_{name}": torch.zeros_like(x) for name, x in tokens.items()}
    else:
        pictures = ("image", "reference_image", "background_image")
        columns |= {name: _pixels(size, side, side, 3) for name in pictures}
        columns["reference_mask"] = _pixels(size, side, side)
    return make_batch(columns, model.unet.added_embedding_dim)


def _pixels(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


class StepCount(TorchDispatchMode):
    """Counts operations, and the bytes of all tensors that they made and somebody still holds.

    Args:
        held: Tensors that are there anyway and do not count.
    """

    def __init__(self, held: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.flops = 0
        self.peak = 0
        self.peak_without_gradients = 0
        self._live = 0
        self._gradients = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in held}
        self._gradient_keys: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs an operation, counts it, and notes what it made."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        self.peak = max(self.peak, self._live)
        self.peak_without_gradients = max(self.peak_without_gradients, self._live - self._gradients)
        return result

    def mark_gradient(self, parameter: torch.Tensor) -> None:
        """Counts a parameter's gradient as such from here on."""
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        if key in self._sizes and key not in self._gradient_keys:
            self._gradient_keys.add(key)
            self._gradients += self._sizes[key]

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._live += storage.nbytes()
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        size = self._sizes.pop(key)
        self._live -= size
        if key in self._gradient_keys:
            self._gradient_keys.remove(key)
            self._gradients -= size


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    # Twice the forward pass, as everywhere: that a fused kernel computes the scores once more is
    # its own affair and counts as little as any other loss of utilisation.
    return 2 * sdpa_flop_count(query.shape, key.shape, value.shape)


_FORMULAS: dict[Any, Any] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
