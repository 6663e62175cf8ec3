"""Show and check configuration files.

Examples:
  nurie config show configs/train/nano.yaml --stages.backbone.steps 50
  nurie config validate configs/train/*.yaml
  nurie config schema train
"""

from __future__ import annotations

import argparse
import json
import sys

import yaml

from nurie.config.loader import CONFIG_KINDS, ConfigError, load_config
from nurie_cli.settings import add_config_argument, parse_overrides


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="print the file with every setting it leaves out")
    add_config_argument(show)
    validate = actions.add_parser("validate", help="check files")
    validate.add_argument("files", metavar="FILE", nargs="+", help="YAML files")
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


def _validate(files: list[str]) -> int:
    faults = 0
    for file in files:
        try:
            kind = load_config(file).model_dump()["kind"]
        except ConfigError as error:
            faults += 1
            print(error, file=sys.stderr)
        else:
            print(f"{file}: valid ({kind})")
    return 2 if faults else 0
