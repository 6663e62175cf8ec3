"""Build data sets, look at them, hand them on.

Examples:
  nurie data build configs/data/characters.yaml
  nurie data build configs/data/folder.yaml --source.path my-pictures --output data/mine
  nurie data build configs/data/folder.yaml --source.kind webdataset --source.path s3://bucket/tars
  nurie data inspect data/characters --sheet sheet.html
  nurie data inspect s3://bucket/data
  nurie data export data/characters --layout webdataset -o exported
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
    inspect.add_argument(
        "folder", metavar="FOLDER", help="folder of a data set, a path or an address"
    )
    inspect.add_argument(
        "--sheet", type=Path, metavar="FILE", help="also write a page that shows samples (HTML)"
    )
    export = actions.add_parser("export", help="write a data set in a layout of other tools")
    export.add_argument(
        "folder", metavar="FOLDER", help="folder of a data set, a path or an address"
    )
    export.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    export.add_argument(
        "--layout", choices=("webdataset", "colorizediffusion"), default="webdataset"
    )


def run(args: argparse.Namespace) -> int:
    """Run ``nurie data``."""
    if args.action == "inspect":
        _inspect(args.folder)
        if args.sheet:
            from nurie_pipelines.data.inspect import write_contact_sheet

            print(f"sheet: {write_contact_sheet(args.folder, args.sheet)}")
        return 0
    if args.action == "export":
        from nurie_pipelines.data.export import export_dataset

        for archive in export_dataset(args.folder, args.output, args.layout):
            print(archive)
        return 0
    config = load(args.config, args.settings, DataConfig)
    from nurie_pipelines.data.build import build_dataset

    build_dataset(config, force=args.force)
    _inspect(config.output)
    return 0


def _inspect(folder: Path | str) -> None:
    import yaml

    from nurie_pipelines.data.inspect import inspect_dataset

    print(yaml.safe_dump(inspect_dataset(folder), sort_keys=False, allow_unicode=True), end="")
