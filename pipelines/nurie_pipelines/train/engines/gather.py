"""Whole tensors from the pieces of all workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist

from nurie_pipelines.train.engines.base import Engine


def gather_average(engine: Engine, average: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Averaged weights, whole, in main memory of the first worker; the others get none.

    Args:
        engine: The engine; all workers call this.
        average: This worker's pieces by name, divided like the weights.
    """
    return dict(_gathered(engine, average))


def _gathered(
    engine: Engine, average: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    many = dist.is_initialized() and dist.get_world_size() > 1
    first = not many or dist.get_rank() == 0
    device = next(engine.stage.parameters()).device
    for fragment in engine.fragments():
        whole = torch.zeros(fragment.shape.numel(), device=device)
        values = average[fragment.name]
        whole[fragment.start : fragment.start + values.numel()] = values
        if many:
            dist.reduce(whole, 0)
        if first:
            yield fragment.name, whole.view(fragment.shape).cpu()
