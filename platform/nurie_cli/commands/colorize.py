"""Colour one sketch with the colours and style of a reference picture, without a server.

Examples:
  nurie colorize sketch.png --reference painting.jpg -o coloured.png
  nurie colorize sketch.png --reference painting.jpg -o coloured.png --seed 7 --guidance-scale 3
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nurie.inference.controls import CONTROLS, Control

DEFAULT_MODEL = "assets/nano"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; every control of the HTTP endpoint is a flag here."""
    parser.add_argument("sketch", type=Path, metavar="SKETCH", help="line drawing, dark on light")
    parser.add_argument("--reference", type=Path, required=True, help="picture to take colours from")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG file to write")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"model folder or models:/NAME@ALIAS (default: {DEFAULT_MODEL})",
    )
    parser.add_argument(
        "--tracking-uri", default="sqlite:///mlflow.db", help="MLflow store of models:/ names"
    )
    for image in ("foreground-mask", "reference-mask", "background"):
        parser.add_argument(f"--{image}", type=Path, help=f"optional {image.replace('-', ' ')}")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for control in CONTROLS:
        group = groups.setdefault(control.group, parser.add_argument_group(control.group))
        group.add_argument(f"--{control.name.replace('_', '-')}", help=_help(control))


def run(args: argparse.Namespace) -> int:
    """Run ``nurie colorize``."""
    from nurie_cli.colorize_files import colorize_files

    controls = {control.name: getattr(args, control.name) for control in CONTROLS}
    given = {name: value for name, value in controls.items() if value is not None}
    seed = colorize_files(args, given)
    print(f"{args.output} (seed {seed})")
    return 0


def _help(control: Control) -> str:
    limits = ""
    if control.choices:
        limits = f"one of {', '.join(map(str, control.choices))}; "
    elif control.minimum is not None:
        limits = f"{control.minimum} to {control.maximum}; "
    return f"{control.help} ({limits}default: {control.default})".replace("%", "%%")
