"""Reading and writing weights one tensor at a time, for checkpoints larger than memory."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import torch
from safetensors import safe_open

from nurie.checkpoints.manifest import PICKLE_SUFFIXES, CheckpointError

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_INDEX_SUFFIX = ".safetensors.index.json"
_MAX_MAPPED_BYTES = 512 * 2**20
"""Bytes read from a mapped file before it is mapped anew."""


class Weights(Protocol):
    """Named tensors that are read when they are asked for."""

    path: Path

    def names(self) -> list[str]:
        """All names."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """Read a tensor."""
        ...


@contextmanager
def open_weights(path: Path, *, allow_pickle: bool = False) -> Iterator[Weights]:
    """Open a weight file, or a folder with one file or several parts in diffusers' form.

    Args:
        path: ``.safetensors``, a folder that holds one, or a pickle.
        allow_pickle: Read a pickle too, with torch's restricted reader.

    Raises:
        CheckpointError: There are no weights, or they are a pickle and that is not allowed.
    """
    if path.is_dir():
        path = _file_of(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    if path.suffix.lower() in PICKLE_SUFFIXES:
        if not allow_pickle:
            raise CheckpointError(
                f"{path}: is a pickle, and loading one can run code; convert it to safetensors, or "
                "allow it with --allow-pickle if you trust its origin"
            )
        yield _Pickle(path)
        return
    files = [path]
    if path.name.endswith(_INDEX_SUFFIX):
        parts = json.loads(path.read_text())["weight_map"].values()
        files = [path.parent / name for name in sorted(set(parts))]
    yield _Safetensors(path, files)


def write_weights(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterator[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
) -> None:
    """Write a safetensors file; no more than one tensor is held.

    Args:
        path: Target; it appears when it is whole.
        shapes: Name and shape of all tensors, in the order in which they come.
        tensors: Names and values in that order.
        dtype: Precision of the file.

    Raises:
        CheckpointError: A tensor is not the announced one.
    """
    size = torch.empty((), dtype=dtype).element_size()
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + size * torch.Size(shape).numel()
        entry = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        header[name] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with partial.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            expected = iter(shapes.items())
            for name, tensor in tensors:
                if next(expected, None) != (name, tuple(tensor.shape)):
                    raise CheckpointError(f"{path}: {name} {tuple(tensor.shape)} was not announced")
                values = tensor.detach().to("cpu", dtype).contiguous()
                file.write(values.flatten().view(torch.uint8).numpy().data)
            missing = next(expected, None)
            if missing is not None:
                raise CheckpointError(f"{path}: {missing[0]} did not come")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class _Safetensors:
    """One file, or the parts of one; mapped into memory and let go again and again."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        self.path = path
        self._opened = {file: _open_safetensors(file) for file in files}
        self._file_of = {
            name: file
            for file, opened in self._opened.items()
            for name in opened.keys()  # noqa: SIM118 (it is no dictionary)
        }
        self._mapped_bytes = 0

    def names(self) -> list[str]:
        return list(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._opened[self._file_of[name]].get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        file = self._file_of[name]
        if self._mapped_bytes > _MAX_MAPPED_BYTES:
            # What was read stays in memory as long as the file is mapped.
            self._opened = {file: _open_safetensors(file) for file in self._opened}
            self._mapped_bytes = 0
        tensor = self._opened[file].get_tensor(name)
        self._mapped_bytes += tensor.nbytes
        return tensor


def _open_safetensors(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except Exception as error:
        # safetensors has no exception class that the stubs know.
        raise CheckpointError(f"{file}: is no safetensors file ({error})") from error


class _Pickle:
    """A torch checkpoint, mapped into memory and read by torch's restricted reader."""

    def __init__(self, path: Path) -> None:
        self.path = path
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = loaded.get("state_dict", loaded)
        self._tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]


def _file_of(folder: Path) -> Path:
    """The weights of a component's folder: whole before parts, safetensors before pickles."""
    for pattern in ("*.safetensors", f"*{_INDEX_SUFFIX}", "*.bin"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        whole = [f for f in found if f.name.count(".") == 1 and "-of-" not in f.name]
        if len(whole) == 1:
            return whole[0]
    raise CheckpointError(f"{folder}: holds no weights (.safetensors)")
