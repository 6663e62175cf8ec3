"""Memory of real training steps on this CPU against the plan's: `python -m benchmarks.memory`.

Measured is what torch's CPU allocator has handed out at its peak, as torch's profiler records it,
while the real engine takes two optimizer steps: weights, gradients, optimizer states, average,
batch and activations. What libraries take past that allocator, its fragmentation and the
interpreter are not in it. A GPU's allocator counts the same tensors.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.workers import on_workers
from nurie.config.loader import load_config
from nurie.config.model import ModelConfig
from nurie.config.train import EngineConfig, Stage, TrainConfig
from nurie.models.autoencoder import build_vae, encode_latents
from nurie.models.colorizer import ColorizationModel
from nurie.planning.memory import BUCKET_ELEMENTS, Way, holdings, stage_size
from nurie.planning.trace import example_batch, meta_stage, trace_step
from nurie.training.draws import row_generators
from nurie.training.ema import Ema
from nurie.training.stages import build_stage
from nurie_pipelines.train.engines import build_engine

MICRO_BATCH = 4


@dataclass(frozen=True)
class Comparison:
    """One training step.

    Args:
        name: What was run.
        planned: Bytes.
        measured: Bytes.
    """

    name: str
    planned: int
    measured: int

    @property
    def ratio(self) -> float:
        """Plan over measurement."""
        return self.planned / self.measured


def example_run(preset: str, num_workers: int, engine: dict[str, object]) -> TrainConfig:
    """`configs/train/nano.yaml` with another model and engine, one micro-batch per step."""
    run = load_config("configs/train/nano.yaml")
    model = load_config(f"configs/model/{preset}.yaml")
    assert isinstance(run, TrainConfig) and isinstance(model, ModelConfig)
    size = {"batch_size": MICRO_BATCH * num_workers}
    return run.model_copy(
        update={
            "model": model,
            "stages": tuple(stage.model_copy(update=size) for stage in run.stages),
            "engine": EngineConfig.model_validate({"num_workers": num_workers, **engine}),
        }
    )


def compare_stages(preset: str, precision: str = "fp32") -> list[Comparison]:
    """Every stage in this process, with plain torch."""
    run = example_run(preset, 1, {"kind": "torch", "precision": precision})
    return [
        Comparison(
            f"{preset}, {stage.kind}, torch {precision}",
            _planned(run, stage),
            _measure(run, stage),
        )
        for stage in run.stages
    ]


def compare_engines(preset: str, zero_stages: Sequence[int]) -> list[Comparison]:
    """The first stage on two workers of DeepSpeed; its bucket, always the same, is left out."""
    runs = [example_run(preset, 2, {"zero_stage": zero}) for zero in zero_stages]
    measured = on_workers(_measure_first_stages, 2, runs)
    comparisons = []
    for run, peak in zip(runs, measured, strict=True):
        zero = run.engine.zero_stage
        bucket = 4 * BUCKET_ELEMENTS
        planned = _planned(run, run.stages[0])
        name = f"{preset}, {run.stages[0].kind}, ZeRO-{zero}, 2 workers"
        comparisons.append(Comparison(name, planned - bucket, peak - bucket))
    return comparisons


def _planned(run: TrainConfig, settings: Stage) -> int:
    module, vae = meta_stage(run.model, settings, torch.float32)
    size = stage_size(module, sum(p.numel() for p in vae.parameters()))
    way = Way(run.engine)
    step = settings.steps - 1
    trace = trace_step(run.model, settings, step, MICRO_BATCH, way.weight_dtype, way.casts)
    return holdings(size, settings, way).total(trace, accumulation=1)


def _measure_first_stages(runs: Sequence[TrainConfig]) -> list[int]:
    return [_measure(run, run.stages[0]) for run in runs]


def _measure(run: TrainConfig, settings: Stage) -> int:
    """Peak bytes from the first step on; building a model may take more for a moment."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        _two_steps(run, settings)
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = recorded.profiler.kineto_results.events()
    start = min(event.start_ns() for event in events if event.name() == "step")
    changes = [
        (event.start_ns(), event.nbytes())  # pyright: ignore[reportAttributeAccessIssue]
        for event in events
        if event.name() == "[memory]"
    ]
    live = peak = 0
    for time, change in sorted(changes):
        live += change
        peak = max(peak, live) if time >= start else 0
    return peak


def _two_steps(run: TrainConfig, settings: Stage) -> None:
    """The body of a training worker, without checkpoints: the second step has all states."""
    vae = build_vae(run.model.vae).requires_grad_(False)
    model = ColorizationModel(run.model)
    stage = build_stage(model, settings, lambda pixels: encode_latents(vae, pixels))
    engine = build_engine(stage, run.engine, run.engine.num_workers)
    ema = Ema(((f.name, f.values) for f in engine.fragments()), settings.ema_decay)
    for step in (settings.steps - 2, settings.steps - 1):
        with record_function("step"):
            batch = example_batch(run.model, settings, MICRO_BATCH)
            rows = row_generators(0, "memory", step, range(MICRO_BATCH))
            engine.backward(engine.forward(batch, step, rows).total)
            engine.update()
            ema.update(((f.name, f.values) for f in engine.fragments()), step)


def main() -> int:
    """Print all comparisons; 1 if one is more than 15 % off."""
    torch.set_num_threads(1)
    rows = [*compare_stages("tiny"), *compare_stages("nano"), *compare_stages("nano", "bf16")]
    rows += compare_engines("nano", (1, 2, 3))
    table = Table("step", "planned, MiB", "measured, MiB", "planned / measured")
    for row in rows:
        sizes = (f"{row.planned / 2**20:.1f}", f"{row.measured / 2**20:.1f}")
        table.add_row(row.name, *sizes, f"{row.ratio:.3f}")
    Console().print(table)
    return 0 if all(abs(row.ratio - 1) <= 0.15 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
