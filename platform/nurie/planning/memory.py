"""Bytes that one worker holds besides activations, for every way to run a training step.

The shares are those of ZeRO (Rajbhandari et al. 2020, section 5) with DeepSpeed's buffers;
`benchmarks/memory.py` compares them with the engines' own tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nurie.config.train import EngineConfig, StageBase
from nurie.planning.trace import StepTrace
from nurie.training.parameter_groups import uses_muon
from nurie.training.stages import TrainingStage

BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's ``reduce_bucket_size``: gradients that are sent together, always allocated."""
LIVE_ELEMENTS = 1_000_000_000
"""DeepSpeed's ``stage3_max_live_parameters``: weights that ZeRO-3 keeps gathered."""
_FP32 = 4


@dataclass(frozen=True)
class Way:
    """One way to run a training step.

    Args:
        engine: Kind, ZeRO stage, precision, offloading and number of workers.
    """

    engine: EngineConfig

    @property
    def offload_optimizer(self) -> bool:
        """Master weights, moments and their update are on the host."""
        return self.engine.offload_optimizer

    @property
    def label(self) -> str:
        """Name for tables."""
        if self.engine.kind == "torch":
            return "torch"
        return f"ZeRO-{self.engine.zero_stage}" + (" offload" if self.offload_optimizer else "")

    @property
    def casts(self) -> bool:
        """Whether operations cast to half precision."""
        return self.engine.precision != "fp32"

    @property
    def weight_dtype(self) -> torch.dtype:
        """Precision of the weights: DeepSpeed converts the module, torch casts as it goes."""
        converts = self.engine.kind == "deepspeed" and self.casts
        half = torch.float16 if self.engine.precision == "fp16" else torch.bfloat16
        return half if converts else torch.float32


def all_ways(engine: EngineConfig) -> list[Way]:
    """The configured way first, then what else the same run could use."""
    configured = Way(engine)
    plain = {"kind": "torch", "offload_optimizer": False, "offload_parameters": False}
    ways = [Way(engine.model_copy(update=plain))]
    for stage in (1, 2, 3):
        for offload in (False, True):
            change = {"kind": "deepspeed", "zero_stage": stage, "offload_optimizer": offload}
            ways.append(Way(engine.model_copy(update=change)))
    return [configured, *(way for way in ways if way.label != configured.label)]


@dataclass(frozen=True)
class StageSize:
    """Parameters of a stage, in elements.

    Args:
        trained: Trained ones.
        frozen: Other ones of the module, which an engine converts and divides too.
        apart: Of the frozen autoencoder, which stays in fp32 on every worker.
        moments: Numbers that the optimizer keeps about the trained ones.
    """

    trained: int
    frozen: int
    apart: int
    moments: int


def stage_size(stage: TrainingStage, apart: int) -> StageSize:
    """Counts the parameters of a stage's module."""
    trained = dict(stage.trained_parameters())
    muon = stage.settings.optimizer.kind == "muon"
    moments = sum(
        p.numel() * (1 if muon and uses_muon(name, p) else 2) for name, p in trained.items()
    )
    total = sum(p.numel() for p in stage.parameters())
    elements = sum(p.numel() for p in trained.values())
    return StageSize(elements, total - elements, apart, moments)


@dataclass(frozen=True)
class Holdings:
    """Bytes on one worker's device that do not depend on the micro-batch.

    Args:
        weights: Weights of the step, with the frozen parts.
        gradients: Gradients of a whole backward pass.
        optimizer: Master weights and moments.
        average: The exponential moving average.
        buffers: Gathered weights and communication buffers during a step.
        update: What the update itself takes, when activations are gone.
        host: Bytes in the worker's main memory.
        gradients_grow: Gradients fill while activations are freed (plain backward pass).
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    buffers: int
    update: int
    host: int
    gradients_grow: bool

    def total(self, trace: StepTrace, accumulation: int) -> int:
        """Peak bytes of a step with this trace, over all micro-batches of an optimizer step."""
        standing = self.weights + self.optimizer + self.average
        if self.gradients_grow and accumulation == 1:
            step = trace.step_bytes
        else:
            step = trace.activation_bytes + self.gradients
        return standing + max(step + self.buffers, self.gradients + self.update)


def holdings(size: StageSize, settings: StageBase, way: Way) -> Holdings:
    """What one worker holds.

    Args:
        size: The stage's parameters.
        settings: The stage.
        way: How its step is run.
    """
    engine, width = way.engine, way.weight_dtype.itemsize
    zero = 0 if engine.kind == "torch" else engine.zero_stage
    share = engine.num_workers if zero else 1
    module = width * (size.trained + size.frozen)
    states = _FP32 * size.moments
    if zero or width < _FP32:
        states += _FP32 * size.trained  # ZeRO has its own fp32 copy even of fp32 weights
    on_host = way.offload_optimizer
    gradients = width * size.trained
    return Holdings(
        weights=(module // share if zero == 3 else module) + _FP32 * size.apart,
        gradients=_gradients(gradients, zero, share, on_host),
        optimizer=0 if on_host else states // share,
        average=_FP32 * size.trained // share if settings.ema_decay else 0,
        buffers=_buffers(size, way, zero),
        update=_update(size, way, zero, share),
        host=(states + _FP32 * size.trained) // share if on_host else 0,
        gradients_grow=zero < 2,
    )


def _gradients(whole: int, zero: int, share: int, on_host: bool) -> int:
    """Gradients on the device at the end of a backward pass."""
    own = 0 if on_host else whole // share
    return {0: whole, 1: whole + own}.get(zero, own)


def _buffers(size: StageSize, way: Way, zero: int) -> int:
    width = way.weight_dtype.itemsize
    if way.engine.kind == "torch":
        # DistributedDataParallel sends copies of the gradients.
        return width * size.trained if way.engine.num_workers > 1 else 0
    if zero < 3:
        return width * BUCKET_ELEMENTS if zero else 0
    # Weights are fetched again before the last ones of an earlier fetch are given back, and a
    # bucket of gradients is copied to be sent.
    live = min(2 * (size.trained + size.frozen), LIVE_ELEMENTS)
    return width * (BUCKET_ELEMENTS + min(size.trained, BUCKET_ELEMENTS) + live)


def _update(size: StageSize, way: Way, zero: int, share: int) -> int:
    """Memory of the optimizer's step beyond what stays."""
    if not zero or way.offload_optimizer:
        return 0
    return _FP32 * size.trained // share
