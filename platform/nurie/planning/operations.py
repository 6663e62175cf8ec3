"""Operations of a stage's steps, counted once and kept in a file: a running step is never touched.

Torch's own counter, switched on around a real step, takes composite operations apart and so changes
the last bits of gradients (measured).
"""

from __future__ import annotations

import json
from pathlib import Path

from nurie.checkpoints.manifest import write_atomically
from nurie.config.model import ModelConfig
from nurie.config.train import Stage
from nurie.planning.phases import gram_phases
from nurie.planning.trace import trace_step


def write_operations(path: Path, model: ModelConfig, settings: Stage) -> None:
    """Count forward and backward pass of a sample for every phase of a stage.

    Args:
        path: Target, JSON: pairs of a phase's first step and its operations.
        model: The preset.
        settings: The stage.
    """
    counted = []
    for _, _, first in gram_phases(settings):
        trace = trace_step(model, settings, first, 1)
        counted.append([first, trace.forward_flops + trace.backward_flops])
    write_atomically(path, json.dumps(counted).encode())


def operations_at(path: Path, step: int) -> int | None:
    """Operations per sample at a step, from 0 (None: not counted yet)."""
    if not path.is_file():
        return None
    return next(flops for first, flops in reversed(json.loads(path.read_text())) if step >= first)
