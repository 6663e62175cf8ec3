"""Colour sketches with the colours and style of a reference picture, here or on a server.

Examples:
  nurie colorize sketch.png --reference painting.jpg -o coloured.png
  nurie colorize sketch.png --reference painting.jpg -o coloured.png --seed 7 --guidance-scale 3
  nurie colorize pages/ "more/*.png" --reference hero.png -o coloured/ --server http://gpu:8000
  nurie colorize sketch.png --reference painting.jpg -o layers.psd --settings-from coloured.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nurie.inference.controls import CONTROLS, Control, parse_controls
from nurie.inference.formats import FORMATS, format_of
from nurie.inference.recipe import Recipe, RecipeError, read_recipe
from nurie_cli.sketches import plan

DEFAULT_MODEL = "assets/nano"
DEFAULT_STORE = "sqlite:///mlflow.db"
PICTURES = {
    "foreground_mask": "white where the sketch's figure is",
    "reference_mask": "white where the reference's figure is",
    "background": "picture that colours what lies behind the figure",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; every control of the HTTP endpoint is a flag here."""
    add = parser.add_argument
    add(
        "sketches",
        nargs="+",
        metavar="SKETCH",
        help="line drawings, dark lines on light paper: files, folders, patterns",
    )
    add(
        "--reference",
        action="append",
        required=True,
        metavar="FILE",
        help="picture whose colours and style to take; given again, every sketch with each",
    )
    endings = ", ".join(f".{name}" for name in FORMATS)
    layered = " and ".join(f".{known.name}" for known in FORMATS.values() if known.layered)
    add(
        "-o",
        "--output",
        required=True,
        help=f"file to write: {endings}; {layered} hold layers: line, colour, background, mask; of "
        "several pictures, the folder",
    )
    add("--format", choices=list(FORMATS), default="png", help="of pictures in a folder")
    add(
        "--settings-from",
        metavar="RESULT",
        help="takes seed and controls from a file that nurie wrote; further flags change them",
    )
    add("--no-metadata", action="store_true", help="leaves the settings out of the files")
    add("--skip-existing", action="store_true", help="leave pictures that are there already")
    for name, help_text in PICTURES.items():
        add(f"--{name.replace('_', '-')}", metavar="FILE", help=help_text)
    here = parser.add_argument_group("without a server")
    here.add_argument(
        "--model", help=f"model folder or models:/NAME@ALIAS; default {DEFAULT_MODEL}"
    )
    here.add_argument("--tracking-uri", help="MLflow store of models:/ names")
    here.add_argument("--device", help="cpu, cuda or cuda:1; left out, a GPU in bfloat16")
    here.add_argument(
        "--low-memory",
        action="store_true",
        default=None,
        help="decodes in tiles; a GPU holds one part at a time",
    )
    remote = parser.add_argument_group("with a server")
    remote.add_argument("--server", metavar="URL", help="let a running `nurie serve` do it")
    remote.add_argument("--key-file", metavar="FILE", help="API key; else from NURIE_API_KEY")
    _add_controls(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``nurie colorize``."""
    restored = _restored(args.settings_from)
    controls = _controls(args, restored)
    tasks = plan(
        args.sketches,
        args.reference,
        args.output,
        args.format,
        skip_existing=args.skip_existing,
    )
    for task in tasks:
        format_of(task.output)
    extra = {name: getattr(args, name) for name in PICTURES if getattr(args, name)}
    if args.server is None:
        from nurie_cli.colorize_here import colorize

        return colorize(
            tasks,
            extra,
            controls,
            model=args.model or DEFAULT_MODEL,
            tracking_uri=args.tracking_uri or DEFAULT_STORE,
            device=args.device,
            low_memory=bool(args.low_memory),
            metadata=not args.no_metadata,
            restored=restored,
        )
    for name in ("model", "tracking_uri", "device", "low_memory", "reference_mask"):
        if getattr(args, name) is not None:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag}: the server has no such input; leave it or --server out")
    from nurie_cli.colorize_remote import colorize as colorize_remote

    metadata = not args.no_metadata
    return colorize_remote(tasks, extra, controls, args.server, args.key_file, metadata)


def _add_controls(parser: argparse.ArgumentParser) -> None:
    groups: dict[str, argparse._ArgumentGroup] = {}
    for control in CONTROLS:
        if control.group not in groups:
            groups[control.group] = parser.add_argument_group(f"{control.group} controls")
        flag = f"--{control.name.replace('_', '-')}"
        groups[control.group].add_argument(flag, metavar="VALUE", help=_help(control))


def _controls(args: argparse.Namespace, restored: Recipe | None) -> dict[str, Any]:
    """The controls that were given, here or by a result, checked."""
    given: dict[str, Any] = {
        control.name: control.parse_text(text)
        for control in CONTROLS
        if (text := getattr(args, control.name)) is not None
    }
    controls = (restored.values if restored else {}) | given
    parse_controls(controls)
    return controls


def _restored(file: str | None) -> Recipe | None:
    try:
        return None if file is None else read_recipe(Path(file).read_bytes())
    except RecipeError as error:
        raise RecipeError(f"--settings-from: {file} {error}") from None


def _help(control: Control) -> str:
    default = "" if control.default is None else f"; default {control.default}"
    return f"{control.help} ({control.allowed}{default})".replace("%", "%%")
