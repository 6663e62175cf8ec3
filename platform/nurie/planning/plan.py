"""The plan of a training run: what its stages take on a number of GPUs, and what that costs."""

from __future__ import annotations

import torch

from nurie.config.model import ModelConfig
from nurie.config.train import EngineConfig, Stage, TrainConfig
from nurie.planning.memory import StageSize, Way, all_ways, holdings, stage_size
from nurie.planning.phases import gram_phases
from nurie.planning.results import Machine, MicroBatch, Phase, RunPlan, StagePlan, WayPlan
from nurie.planning.trace import StepTrace, meta_stage, trace_step


def plan_run(config: TrainConfig, machine: Machine) -> RunPlan:
    """Plans a run.

    Args:
        config: The run; its engine's number of workers gives way to the machine's.
        machine: Where it would run.

    Raises:
        ValueError: If a batch cannot be divided by the number of GPUs.
    """
    engine = config.engine.model_copy(update={"num_workers": machine.num_gpus})
    for stage in config.stages:
        if stage.batch_size % machine.num_gpus:
            raise ValueError(
                f"stages.{stage.kind}.batch_size {stage.batch_size} cannot be divided by "
                f"{machine.num_gpus} GPUs; take one of {_divisors(stage.batch_size)}"
            )
    peak = machine.gpu.peak_tflops(engine.precision) if machine.gpu else None
    stages = tuple(_plan_stage(config.model, stage, engine, machine) for stage in config.stages)
    return RunPlan(
        name=config.name,
        model=config.model.name,
        image_size=config.model.image_size,
        precision=engine.precision,
        machine=machine,
        peak_tflops=peak,
        stages=stages,
    )


def _plan_stage(
    model: ModelConfig, settings: Stage, engine: EngineConfig, machine: Machine
) -> StagePlan:
    module, vae = meta_stage(model, settings, torch.float32)
    parts = {**module.model.parts(), "vae": vae}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    size = stage_size(module, counts["vae"])
    trace = _Tracer(model, settings)
    phases = _phases(settings, Way(engine), trace)
    ways = tuple(_plan_way(settings, size, way, machine, trace) for way in all_ways(engine))
    rate = hours = cost = None
    if machine.gpu is not None:
        speed = machine.gpu.peak_tflops(engine.precision) * 1e12 * machine.utilisation
        total = sum(phase.steps * phase.flops for phase in phases) * settings.batch_size
        hours = total / (speed * machine.num_gpus) / 3600
        rate = settings.steps * settings.batch_size / (hours * 3600)
        if machine.price_per_gpu_hour is not None:
            cost = hours * machine.num_gpus * machine.price_per_gpu_hour
    return StagePlan(
        kind=settings.kind,
        steps=settings.steps,
        batch_size=settings.batch_size,
        accumulation=settings.gradient_accumulation_steps,
        trained=size.trained,
        frozen=size.frozen + size.apart,
        parts=counts,
        phases=phases,
        ways=ways,
        samples_per_second=rate,
        hours=hours,
        cost=cost,
    )


def _phases(settings: Stage, way: Way, trace: _Tracer) -> tuple[Phase, ...]:
    phases = []
    for name, steps, example in gram_phases(settings):
        one = trace(example, 1, way, recompute=False)
        phases.append(Phase(name, steps, one.forward_flops, one.backward_flops))
    return tuple(phases)


def _plan_way(
    settings: Stage, size: StageSize, way: Way, machine: Machine, trace: _Tracer
) -> WayPlan:
    held = holdings(size, settings, way)
    share = settings.batch_size // machine.num_gpus
    *_, (_, _, largest) = gram_phases(settings)
    first, last = (trace(largest, samples, way) for samples in (1, share))
    micro_batches = []
    for samples in _divisors(share):
        step = _between(first, last, (samples - 1) / max(1, share - 1))
        total = held.total(step, share // samples)
        fits = None if machine.usable_bytes is None else total <= machine.usable_bytes
        micro_batches.append(
            MicroBatch(samples, share // samples, step.activation_bytes, total, fits)
        )
    return WayPlan(way.label, held, tuple(micro_batches))


def _between(first: StepTrace, last: StepTrace, place: float) -> StepTrace:
    """A micro-batch between two traced ones: memory is the peak of lines, so at most this."""

    def mix(start: int, end: int) -> int:
        return round(start + (end - start) * place)

    return StepTrace(
        mix(first.forward_flops, last.forward_flops),
        mix(first.backward_flops, last.backward_flops),
        mix(first.activation_bytes, last.activation_bytes),
        mix(first.step_bytes, last.step_bytes),
    )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


class _Tracer:
    """Traces of one stage, each made once; ways of the same precision share them."""

    def __init__(self, model: ModelConfig, settings: Stage) -> None:
        self._model = model
        self._settings = settings
        self._known: dict[tuple[int, int, torch.dtype, bool], StepTrace] = {}

    def __call__(
        self, step: int, micro_batch: int, way: Way, recompute: bool | None = None
    ) -> StepTrace:
        """The trace; without recomputation where operations count, which it must not raise."""
        again = way.engine.gradient_checkpointing if recompute is None else recompute
        key = (step, micro_batch, way.weight_dtype, again)
        if key not in self._known:
            self._known[key] = trace_step(
                self._model, self._settings, step, micro_batch, way.weight_dtype, way.casts, again
            )
        return self._known[key]
