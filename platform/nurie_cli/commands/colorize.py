"""Colour one sketch with the colours and style of a reference picture, without a server.

Examples:
  nurie colorize sketch.png --reference painting.jpg -o coloured.png
  nurie colorize sketch.png --reference painting.jpg -o coloured.png --seed 7 --guidance-scale 3
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nurie.inference.controls import CONTROLS, Control, parse_controls

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

DEFAULT_MODEL = "assets/nano"
OPTIONAL_PICTURES = {
    "foreground_mask": "white where the sketch's figure is",
    "reference_mask": "white where the reference's figure is",
    "background": "picture that colours what lies behind the figure",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; every control of the HTTP endpoint is a flag here."""
    add = parser.add_argument
    add("sketch", type=Path, metavar="SKETCH", help="line drawing, dark lines on light paper")
    add("--reference", type=Path, required=True, help="picture whose colours and style to take")
    add("-o", "--output", type=Path, required=True, help="PNG file to write")
    add("--model", default=DEFAULT_MODEL, help="model folder or models:/NAME@ALIAS")
    add("--tracking-uri", default="sqlite:///mlflow.db", help="MLflow store of models:/ names")
    add("--device", help="cpu, cuda or cuda:1; left out, a GPU in bfloat16 if there is one")
    add(
        "--low-memory", action="store_true", help="decodes in tiles; a GPU holds one part at a time"
    )
    for name, help_text in OPTIONAL_PICTURES.items():
        add(f"--{name.replace('_', '-')}", type=Path, metavar="FILE", help=help_text)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for control in CONTROLS:
        if control.group not in groups:
            groups[control.group] = parser.add_argument_group(f"{control.group} controls")
        flag = f"--{control.name.replace('_', '-')}"
        groups[control.group].add_argument(flag, metavar="VALUE", help=_help(control))


def run(args: argparse.Namespace) -> int:
    """Run ``nurie colorize``."""
    texts = {control: getattr(args, control.name) for control in CONTROLS}
    given = {
        control.name: control.parse_text(text)
        for control, text in texts.items()
        if text is not None
    }
    controls: dict[str, Any] = parse_controls(given)
    pictures: dict[str, Any] = {"sketch": [_read(args.sketch, "sketch")]}
    pictures["reference"] = [_read(args.reference, "reference")]
    for name in OPTIONAL_PICTURES:
        if file := getattr(args, name):
            pictures[name] = [_read(file, name)]
    from nurie.inference.pipeline import ColorizationPipeline
    from nurie.tracking.registry import resolve_model

    device, dtype = _device(args.device)
    folder = resolve_model(args.model, args.tracking_uri)
    pipe = ColorizationPipeline.from_pretrained(folder, torch_dtype=dtype)
    if args.low_memory:
        pipe.enable_vae_tiling()
    if args.low_memory and device.type != "cpu":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    result = pipe(**pictures, **controls)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    result.images[0].save(args.output, format="PNG")
    print(f"{args.output} (seed {result.seeds[0]})")
    return 0


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


def _help(control: Control) -> str:
    default = "" if control.default is None else f"; default {control.default}"
    return f"{control.help} ({control.allowed}{default})".replace("%", "%%")
