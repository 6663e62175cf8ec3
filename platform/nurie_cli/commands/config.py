"""Show and check configuration files.

Examples:
  nurie config show configs/train/nano.yaml --stages.backbone.steps 50
  nurie config validate
  nurie config validate my-configs configs/train/nano.yaml
  nurie config schema train
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import yaml

from nurie.config.loader import CONFIG_KINDS, ConfigError, load_config
from nurie_cli.settings import add_config_argument, parse_overrides


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="print the file with every setting it leaves out")
    add_config_argument(show)
    validate = actions.add_parser("validate", help="check files and show all that is wrong")
    validate.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        default=["configs"],
        help="YAML files, or folders with some (default: configs)",
    )
    schema = actions.add_parser("schema", help="print the JSON Schema of a kind of file")
    schema.add_argument("kind", choices=sorted(CONFIG_KINDS), help="kind of file")


def run(args: argparse.Namespace) -> int:
    """Run ``nurie config``."""
    if args.action == "show":
        config = load_config(args.config, parse_overrides(args.settings, args.config))
        print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="")
        return 0
    if args.action == "schema":
        print(json.dumps(CONFIG_KINDS[args.kind].model_json_schema(), indent=2))
        return 0
    return _validate(args.files)


def _validate(names: list[str]) -> int:
    """Show the kind of every file, then all problems of all files; 2 if there are any."""
    from rich.console import Console
    from rich.table import Table

    table = Table("file", "kind", "result")
    errors: list[ConfigError] = []
    for file in _files(names):
        try:
            kind = load_config(file).model_dump()["kind"]
        except ConfigError as error:
            errors.append(error)
            count = len(error.problems)
            table.add_row(str(file), "", f"[red]{count} problem{'s' if count > 1 else ''}")
        else:
            table.add_row(str(file), kind, "valid")
    Console().print(table)
    for error in errors:
        print(error, file=sys.stderr)
    print(f"{table.row_count} files, {len(errors)} with problems")
    return 2 if errors else 0


def _files(names: list[str]) -> list[Path]:
    """The named files, and the YAML files below named folders."""
    files: list[Path] = []
    for name in names:
        path = Path(name)
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(file for file in path.rglob("*") if file.suffix in (".yaml", ".yml"))
        if not found:
            raise ValueError(f"{path}: a folder without YAML files")
        files += found
    return files
