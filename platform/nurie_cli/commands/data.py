"""Build data sets and look at them.

Examples:
  nurie data build configs/data/characters.yaml
  nurie data build configs/data/folder.yaml --source.path my-pictures --output data/mine
  nurie data inspect data/characters
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nurie.config.data import DataConfig
from nurie_cli.settings import add_config_argument, load


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="make the shards; continues an interrupted build")
    add_config_argument(build)
    build.add_argument(
        "--force", action="store_true", help="delete another build in the same output folder"
    )
    inspect = actions.add_parser("inspect", help="print what a data set holds")
    inspect.add_argument("folder", type=Path, metavar="FOLDER", help="folder of a data set")


def run(args: argparse.Namespace) -> int:
    """Run ``nurie data``."""
    if args.action == "inspect":
        return _inspect(args.folder)
    config = load(args.config, args.settings, DataConfig)
    from nurie_pipelines.data.build import build_dataset

    build_dataset(config, force=args.force)
    return _inspect(config.output)


def _inspect(folder: Path) -> int:
    from rich.console import Console
    from rich.table import Table

    from nurie.data.manifest import read_manifest

    manifest = read_manifest(folder)
    title = f"{manifest.name} ({folder})"
    table = Table("split", "samples", "shards", title=title, title_justify="left")
    for split, count in manifest.counts.items():
        table.add_row(split, str(count), str(len(manifest.shards_of(split))))
    console = Console()
    console.print(table)
    console.print(
        f"{manifest.image_size} px, line styles: {', '.join(manifest.sketch_styles)}, "
        f"latents: {manifest.latents_shape or 'none'}, left out: {len(manifest.quarantine)} files"
    )
    for file in manifest.quarantine:
        console.print(f"  left out {file.file}: {file.reason}")
    return 0
