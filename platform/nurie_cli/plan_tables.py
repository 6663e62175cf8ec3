"""A plan as tables for people, and as JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from nurie.planning.results import GIB, RunPlan, StagePlan, WayPlan

_MEMORY_COLUMNS = (
    "First line: as configured. states: the optimizer's, with master weights; buffers: of the "
    "communication; sample: activations of each; host: in main memory; fits: largest micro-batch.\n"
)


def as_json(plan: RunPlan) -> str:
    """The whole plan; bytes, operations and hours are plain numbers."""
    content = asdict(plan)
    for stage, entry in zip(plan.stages, content["stages"], strict=True):
        entry["flops_per_sample"] = stage.flops
        for way, way_entry in zip(stage.ways, entry["ways"], strict=True):
            largest = way.largest
            way_entry["largest_micro_batch"] = None if largest is None else largest.size
    return json.dumps(content, indent=2)


def show_plan(plan: RunPlan, console: Console) -> None:
    """Prints the tables and what to do about them."""
    console.print(_headline(plan), highlight=False)
    console.print(_parameters(plan))
    console.print(_operations(plan))
    for stage in plan.stages:
        console.print(_memory(stage))
    console.print(_MEMORY_COLUMNS, highlight=False, soft_wrap=True)
    console.print(_micro_batches(plan))
    if plan.peak_tflops is not None:
        console.print(_time(plan))
    for line in (*_advice(plan), *_assumptions(plan)):
        console.print(line, highlight=False, soft_wrap=True)


def _headline(plan: RunPlan) -> str:
    machine = plan.machine
    what = f"x {machine.gpu.name}" if machine.gpu else "workers"
    where = f"{machine.num_gpus} {what}"
    return f"[bold]{plan.name}[/]: {plan.model}, {plan.image_size} px, {plan.precision}, {where}"


def _parameters(plan: RunPlan) -> Table:
    table = _table("part", "Parameters, millions")
    names = list(dict.fromkeys(name for stage in plan.stages for name in stage.parts))
    for stage in plan.stages:
        table.add_column(stage.kind, justify="right")
    for name in names:
        cells = [stage.parts.get(name) for stage in plan.stages]
        table.add_row(name, *("" if cell is None else _million(cell) for cell in cells))
    table.add_section()
    table.add_row("trained", *(_million(stage.trained) for stage in plan.stages), style="bold")
    table.add_row("frozen", *(_million(stage.frozen) for stage in plan.stages))
    return table


def _operations(plan: RunPlan) -> Table:
    table = _table("stage", "Operations of one sample, TFLOP")
    for name in ("steps", "forward", "backward", "both"):
        table.add_column(name, justify="right")
    for stage in plan.stages:
        for phase in stage.phases:
            numbers = (phase.forward_flops, phase.backward_flops, phase.flops)
            name = " ".join(filter(None, (stage.kind, f"({phase.name})" if phase.name else "")))
            table.add_row(name, f"{phase.steps:,}", *(f"{n / 1e12:.4g}" for n in numbers))
    return table


def _memory(stage: StagePlan) -> Table:
    table = _table("engine", f"Memory of one worker, GiB: {stage.kind}")
    for name in ("weights", "grads", "states", "EMA", "buffers", "sample", "host", "fits"):
        table.add_column(name, justify="right")
    for way in stage.ways:
        held, largest = way.holdings, way.largest
        parts = (held.weights, held.gradients, held.optimizer, held.average, held.buffers)
        table.add_row(
            way.label,
            *(_gib(part) for part in (*parts, _per_sample(way), held.host)),
            "none" if largest is None else str(largest.size),
        )
    return table


def _per_sample(way: WayPlan) -> float:
    """Activations that one more sample adds."""
    first, last = way.micro_batches[0], way.micro_batches[-1]
    if first is last:
        return first.activation_bytes
    return (last.activation_bytes - first.activation_bytes) / (last.size - first.size)


def _micro_batches(plan: RunPlan) -> Table:
    table = _table("stage", f"Micro-batches with {plan.stages[0].ways[0].label}, GiB")
    for name in ("size", "accumulation", "activations", "all", "fits"):
        table.add_column(name, justify="right")
    for stage in plan.stages:
        table.add_section()
        for number, micro in enumerate(stage.ways[0].micro_batches):
            verdict = {True: "[green]yes", False: "[red]no", None: ""}[micro.fits]
            chosen = micro.accumulation == stage.accumulation
            table.add_row(
                stage.kind if number == 0 else "",
                f"{micro.size}{' (configured)' if chosen else ''}",
                str(micro.accumulation),
                _gib(micro.activation_bytes),
                _gib(micro.total_bytes),
                verdict,
            )
    return table


def _time(plan: RunPlan) -> Table:
    price = plan.machine.price_per_gpu_hour is not None
    table = _table("stage", "Time and cost" if price else "Time")
    for name in ("samples/s", "s/step", "hours", "GPU hours", *(["cost"] if price else [])):
        table.add_column(name, justify="right")
    for stage in plan.stages:
        rate, hours = stage.samples_per_second or 0.0, stage.hours or 0.0
        rates = (_number(rate), _number(stage.batch_size / rate))
        table.add_row(stage.kind, *rates, *_spent(plan, hours, stage.cost))
    table.add_section()
    hours = sum(stage.hours or 0.0 for stage in plan.stages)
    cost = sum(stage.cost or 0.0 for stage in plan.stages) if price else None
    table.add_row("together", "", "", *_spent(plan, hours, cost), style="bold")
    return table


def _spent(plan: RunPlan, hours: float, cost: float | None) -> list[str]:
    cells = [_number(hours), _number(hours * plan.machine.num_gpus)]
    return cells if cost is None else [*cells, _number(cost)]


def _advice(plan: RunPlan) -> list[str]:
    """For every stage the division of its batch that fits, where it is not the configured one."""
    if plan.machine.gpu is None:
        return ["No GPU named: --gpu NAME adds what fits, hours and (with a price) cost."]
    return [line for stage in plan.stages if (line := _stage_advice(stage))]


def _stage_advice(stage: StagePlan) -> str:
    configured = [
        micro for micro in stage.ways[0].micro_batches if micro.accumulation == stage.accumulation
    ]
    if configured and configured[0].fits:
        return ""
    largest = stage.ways[0].largest
    if largest is not None:
        flag = f"--stages.{stage.kind}.gradient-accumulation-steps {largest.accumulation}"
        return f"{stage.kind}: micro-batch {largest.size} is the largest that fits: {flag}"
    others = [way for way in stage.ways if way.largest is not None]
    if not others:
        return f"{stage.kind}: no engine fits, not even with one sample; take more or larger GPUs"
    names = ", ".join(way.label for way in others)
    return f"{stage.kind}: the configured engine does not fit with one sample; {names} would"


def _assumptions(plan: RunPlan) -> list[str]:
    machine = plan.machine
    lines = [
        "Gradients fill while activations are freed, so the columns can add up to more than `all`."
    ]
    if machine.gpu is None or plan.peak_tflops is None:
        return lines
    return [
        *lines,
        f"Time: {machine.utilisation:.0%} of {plan.peak_tflops:g} TFLOP/s per GPU; loading, "
        "checkpoints, samples and restarts are not in it.",
        f"Fits: at most {1 - machine.headroom:.0%} of {machine.gpu.memory_gib:g} GiB.",
    ]


def _table(first: str, title: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    return table


def _gib(number: float) -> str:
    return _number(number / GIB)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _million(number: int) -> str:
    return f"{number / 1e6:,.2f}"
