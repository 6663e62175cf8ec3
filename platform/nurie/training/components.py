"""What the trainings of the small frozen components share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from nurie.training.optimizer import MuonAdamW


def bfloat16_where_fast() -> torch.autocast:
    """Mixed precision on processors with matrix units; elsewhere it would only be slower."""
    has_matrix_units = bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    return torch.autocast("cpu", torch.bfloat16, enabled=has_matrix_units)


def progress_steps(title: str, start: int, total: int) -> Iterator[tuple[int, Progress]]:
    """Yield the steps from ``start`` to ``total`` under a progress bar with an estimate of the end.

    The bar comes along so that the loop can print above it.
    """
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(title, total=total, completed=start)
        for step in range(start, total):
            yield step, bar
            bar.advance(task)


def save_state(
    file: Path, step: int, modules: dict[str, torch.nn.Module], optimizer: MuonAdamW
) -> None:
    """Write what a later run needs to continue, replacing the old file only when complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {name: module.state_dict() for name, module in modules.items()}
    partial = file.with_suffix(".partial")
    torch.save({"step": step, "modules": state, "optimizer": optimizer.state_dict()}, partial)
    partial.replace(file)


def load_state(file: Path, modules: dict[str, torch.nn.Module], optimizer: MuonAdamW) -> int:
    """Load a saved state in place.

    Returns:
        The number of steps done: 0 where there is no state yet.

    Raises:
        ValueError: If the state belongs to another architecture.
    """
    if not file.is_file():
        return 0
    state = torch.load(file, weights_only=True)
    try:
        for name, module in modules.items():
            module.load_state_dict(state["modules"][name])
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"{file} was saved by a model of another architecture; delete it to start afresh"
        ) from error
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
