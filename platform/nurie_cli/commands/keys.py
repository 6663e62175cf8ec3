"""API keys of the HTTP endpoint: make, list and revoke them.

Examples:
  nurie keys add studio --file keys.yaml
  nurie keys add guest --file keys.yaml --days 7 --max-active 2 --max-inference-steps 20
  nurie keys list --file keys.yaml
  nurie keys revoke guest --file keys.yaml
  nurie serve --keys-file keys.yaml

Requests carry a key as `Authorization: Bearer KEY`. A running endpoint follows the file.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from nurie.config.keys import SCOPES, ApiKey, KeyLimits

DEFAULT_FILE = Path("keys.yaml")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="make a key and print it, once")
    add.add_argument("name", metavar="NAME", help="who gets it; their jobs belong to this name")
    add.add_argument("--scope", choices=SCOPES, default="colorize", help="default: colorize")
    add.add_argument("--days", type=float, metavar="N", help="until it ends (default: never)")
    for name, field in KeyLimits.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        add.add_argument(flag, type=int, metavar="N", help=_lower(field.description))
    listing = actions.add_parser("list", help="names, scopes and limits")
    revoke = actions.add_parser("revoke", help="end a key at once")
    revoke.add_argument("name", metavar="NAME")
    for action in (add, listing, revoke):
        action.add_argument(
            "--file", type=Path, default=DEFAULT_FILE, help=f"default: {DEFAULT_FILE}"
        )


def run(args: argparse.Namespace) -> int:
    """Run ``nurie keys``."""
    from nurie_serve import keys

    if args.action == "add":
        limits = {name: getattr(args, name) for name in KeyLimits.model_fields}
        print(keys.add_key(args.file, args.name, args.scope, args.days, limits))
    elif args.action == "revoke":
        keys.revoke_key(args.file, args.name)
        print(f"{args.name}: revoked")
    else:
        for key in keys.read_keys(args.file).keys:
            print(_line(key))
    return 0


def _line(key: ApiKey) -> str:
    limits = [f"{name}={value}" for name, value in key.limits if value is not None]
    ends = ""
    if key.expires_at is not None:
        word = "ended" if key.expired(datetime.now(UTC)) else "ends"
        ends = f"  {word} {key.expires_at:%Y-%m-%d %H:%M}"
    return f"{key.name:20} {key.scope:8}{ends}  {' '.join(limits)}".rstrip()


def _lower(text: str | None) -> str:
    text = (text or "").rstrip(".")
    return text[:1].lower() + text[1:]
