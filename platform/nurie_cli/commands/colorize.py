"""Colour sketches with the colours and style of a reference picture, here or on a server.

Examples:
  nurie colorize sketch.png --reference painting.jpg -o coloured.png
  nurie colorize sketch.png --reference painting.jpg -o coloured.png --seed 7 --guidance-scale 3
  nurie colorize pages/ "more/*.png" --reference hero.png -o coloured/ --server http://gpu:8000
"""

from __future__ import annotations

import argparse
from typing import Any

from nurie.inference.controls import CONTROLS, Control, parse_controls
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
    add("-o", "--output", required=True, help="PNG file to write; of several pictures, the folder")
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
    controls = _controls(args)
    tasks = plan(args.sketches, args.reference, args.output, skip_existing=args.skip_existing)
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
        )
    for name in ("model", "tracking_uri", "device", "low_memory", "reference_mask"):
        if getattr(args, name) is not None:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag}: the server has no such input; leave it or --server out")
    from nurie_cli.colorize_remote import colorize as colorize_remote

    return colorize_remote(tasks, extra, controls, args.server, args.key_file)


def _add_controls(parser: argparse.ArgumentParser) -> None:
    groups: dict[str, argparse._ArgumentGroup] = {}
    for control in CONTROLS:
        if control.group not in groups:
            groups[control.group] = parser.add_argument_group(f"{control.group} controls")
        flag = f"--{control.name.replace('_', '-')}"
        groups[control.group].add_argument(flag, metavar="VALUE", help=_help(control))


def _controls(args: argparse.Namespace) -> dict[str, Any]:
    """The controls that were given, checked."""
    texts = {control: getattr(args, control.name) for control in CONTROLS}
    given: dict[str, Any] = {
        control.name: control.parse_text(text)
        for control, text in texts.items()
        if text is not None
    }
    parse_controls(given)
    return given


def _help(control: Control) -> str:
    default = "" if control.default is None else f"; default {control.default}"
    return f"{control.help} ({control.allowed}{default})".replace("%", "%%")
