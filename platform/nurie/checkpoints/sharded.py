"""State of a training run in pieces: every worker writes what it holds, any number may read it.

A shard is a safetensors file of flat fp32 pieces. The name of a piece is that of its parameter and
of what it is (``unet.conv_in.weight|exp_avg``); where it starts in the flattened tensor, and that
one's shape, stand in the file's metadata. Pieces of several files may overlap, then they are equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nurie.checkpoints.manifest import CheckpointError

WEIGHT = "weight"
"""The parameter itself, in fp32."""
AVERAGE = "average"
"""Its exponential moving average."""
_SEPARATOR = "|"


@dataclass(frozen=True)
class Fragment:
    """What one worker holds of one tensor.

    Args:
        name: Name of the parameter within the colorizer.
        state: What of it: ``weight``, ``average``, or a state of the optimizer.
        values: Flat fp32 values; empty where the worker holds nothing.
        shape: Shape of the whole tensor.
        start: Place of the first value in the flattened tensor.
    """

    name: str
    state: str
    values: torch.Tensor
    shape: torch.Size
    start: int = 0


def write_shard(path: Path, fragments: Iterable[Fragment]) -> None:
    """Write a worker's fragments; nothing is written where all are empty.

    Raises:
        OSError: If the file cannot be written.
    """
    held = [fragment for fragment in fragments if fragment.values.numel()]
    if not held:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = {f"{each.name}{_SEPARATOR}{each.state}": each for each in held}
    assert len(keys) == len(held), "a worker holds one piece of a tensor at most"
    tensors = {key: each.values.detach().float().cpu().contiguous() for key, each in keys.items()}
    pieces = {key: [each.start, *each.shape] for key, each in keys.items()}
    try:
        save_file(tensors, path, metadata={"pieces": json.dumps(pieces)})
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


@contextmanager
def open_shards(folder: Path) -> Iterator[ShardedState]:
    """Open all shards of a folder.

    Raises:
        CheckpointError: There is none, or one cannot be read.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: holds no shards (.safetensors)")
    yield ShardedState(folder, files)


class ShardedState:
    """Tensors that are put together from the shards when they are asked for.

    Args:
        folder: Where the shards are, for messages.
        files: All of them.
    """

    def __init__(self, folder: Path, files: list[Path]) -> None:
        self._folder = folder
        self._pieces: dict[tuple[str, str], list[tuple[int, int, Any]]] = {}
        self._shapes: dict[tuple[str, str], torch.Size] = {}
        for file in files:
            self._index(file)

    def names(self, state: str = WEIGHT) -> set[str]:
        """The parameters of which there is such a state."""
        return {name for name, each in self._pieces if each == state}

    def optimizer_states(self, name: str) -> set[str]:
        """What an optimizer remembers of a parameter."""
        found = {state for each, state in self._pieces if each == name}
        return found - {WEIGHT, AVERAGE}

    def part(self, name: str, state: str, start: int, length: int) -> torch.Tensor:
        """``length`` flat fp32 values from ``start`` on.

        Raises:
            CheckpointError: Naming the tensor, if a value is in no shard.
        """
        result = torch.empty(length)
        missing = torch.ones(length, dtype=torch.bool)
        for first, end, opened in self._pieces.get((name, state), []):
            low, high = max(first, start), min(end, start + length)
            if low < high:
                key = f"{name}{_SEPARATOR}{state}"
                result[low - start : high - start] = opened.get_slice(key)[
                    low - first : high - first
                ]
                missing[low - start : high - start] = False
        if missing.any():
            raise CheckpointError(
                f"{self._folder}: {int(missing.sum())} of {length} values of {name} ({state}) are "
                "in no shard"
            )
        return result

    def whole(self, name: str, state: str) -> torch.Tensor:
        """A whole tensor.

        Raises:
            CheckpointError: If a value is in no shard.
        """
        shape = self._shapes.get((name, state))
        if shape is None:
            raise CheckpointError(f"{self._folder}: {name} ({state}) is in no shard")
        return self.part(name, state, 0, shape.numel()).view(shape)

    def _index(self, file: Path) -> None:
        try:
            opened = safe_open(file, framework="pt")
            pieces = json.loads(opened.metadata()["pieces"])
        except Exception as error:
            # safetensors has no exception class that the stubs know.
            raise CheckpointError(f"{file}: is no shard of a training run ({error})") from error
        for key, (start, *shape) in pieces.items():
            name, _, state = key.rpartition(_SEPARATOR)
            length = opened.get_slice(key).get_shape()[0]
            self._pieces.setdefault((name, state), []).append((start, start + length, opened))
            self._shapes[name, state] = torch.Size(shape)
