"""``nurie colorize`` without a server: the model is loaded here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nurie.inference.formats import encode, format_of
from nurie.inference.recipe import Recipe, model_label
from nurie_cli.sketches import Task

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from nurie.inference.pipeline import ColorizationPipeline


def colorize(
    tasks: Sequence[Task],
    extra: dict[str, str],
    controls: dict[str, Any],
    *,
    model: str,
    tracking_uri: str,
    device: str | None,
    low_memory: bool,
    metadata: bool,
    restored: Recipe | None,
) -> int:
    """Make pictures one after the other and return the exit code.

    Args:
        tasks: The pictures to make.
        extra: Files of masks and background, for all.
        controls: Those that were given.
        model: Folder or ``models:/NAME@ALIAS``.
        tracking_uri: MLflow store of the latter.
        device: Where to compute; None takes the best.
        low_memory: Decode in tiles, keep one part of the model on the GPU.
        metadata: Whether the settings are in the files.
        restored: The recipe whose settings these are, if there is one.
    """
    if not tasks:
        print("nothing to do: every picture is there")
        return 0
    first = {task.sketch: _read(task.sketch, "sketch") for task in tasks[:1]}
    shared = {name: [_read(Path(file), name)] for name, file in extra.items()}
    references = {task.reference: _read(task.reference, "reference") for task in tasks}
    pipe, label = _load(model, tracking_uri, device, low_memory)
    if restored and restored.model.split()[-1] != label.split()[-1]:
        print(f"note: the settings are those of a picture by {restored.model}", file=sys.stderr)
    for number, task in enumerate(tasks, 1):
        sketch = first.get(task.sketch) or _read(task.sketch, "sketch")
        result = pipe(sketch=[sketch], reference=[references[task.reference]], **shared, **controls)
        task.output.parent.mkdir(parents=True, exist_ok=True)
        recipe = Recipe.of(label, result.seeds[0], result.controls) if metadata else None
        task.output.write_bytes(encode(result.layered[0], format_of(task.output), recipe))
        count = f"{number}/{len(tasks)} " if len(tasks) > 1 else ""
        print(f"{count}{task.output} (seed {result.seeds[0]})", flush=True)
    return 0


def _load(
    model: str, tracking_uri: str, device: str | None, low_memory: bool
) -> tuple[ColorizationPipeline, str]:
    """The model on its device, and its name with the digest."""
    from nurie.checkpoints.manifest import manifest_digest
    from nurie.inference.pipeline import ColorizationPipeline
    from nurie.tracking.registry import resolve_model

    place, dtype = _device(device)
    folder = resolve_model(model, tracking_uri)
    pipe = ColorizationPipeline.from_pretrained(folder, torch_dtype=dtype)
    if low_memory:
        pipe.enable_vae_tiling()
    if low_memory and place.type != "cpu":
        pipe.enable_model_cpu_offload(device=place)
    else:
        pipe.to(place)
    name = model if model.startswith("models:/") else folder.name
    return pipe, model_label(name, manifest_digest(folder))


def _device(name: str | None) -> tuple[torch.device, torch.dtype]:
    """The device asked for, or the best there is, and the precision to use on it."""
    import torch

    there = {"cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))}
    wanted = name or ("cuda" if len(there) > 1 else "cpu")
    if wanted == "cuda":
        wanted = "cuda:0"
    if wanted not in there:
        raise ValueError(
            f"--device: {name} is not on this machine; there is {', '.join(sorted(there))}"
        )
    return torch.device(wanted), torch.float32 if wanted == "cpu" else torch.bfloat16


def _read(file: Path, field: str) -> Image:
    from nurie.inference.images import decode_image

    image = decode_image(file.read_bytes(), field)
    return image.convert("L") if field.endswith("_mask") else image
