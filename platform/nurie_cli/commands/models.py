"""Models in the registry, model folders, and the frozen parts of the built-in model.

Examples:
  nurie models list
  nurie models register runs/nano/model --name nurie --alias challenger
  nurie models promote models:/nurie@challenger --alias champion
  nurie models verify assets/nano
  nurie models train-vae configs/train/nano-vae.yaml
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nurie.config.train import EncodersTrainConfig, VaeTrainConfig
from nurie_cli.settings import add_config_argument, load

DEFAULT_STORE = "sqlite:///mlflow.db"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="registered versions and their aliases")
    register = actions.add_parser("register", help="publish a model folder as a new version")
    register.add_argument("folder", type=Path, metavar="FOLDER")
    register.add_argument("--name", default="nurie", help="name in the registry (default: nurie)")
    register.add_argument("--alias", default="challenger", help="alias (default: challenger)")
    promote = actions.add_parser("promote", help="give an alias to a version")
    promote.add_argument("model", metavar="models:/NAME/VERSION", help="or models:/NAME@ALIAS")
    promote.add_argument("--alias", default="champion", help="alias (default: champion)")
    for command in (listing, register, promote):
        command.add_argument("--store", default=DEFAULT_STORE, help="MLflow tracking store")
    verify = actions.add_parser("verify", help="compare a model folder with its digests")
    verify.add_argument("folder", type=Path, metavar="FOLDER")
    add_config_argument(actions.add_parser("train-vae", help="train the autoencoder"))
    encoders = actions.add_parser("train-encoders", help="train the image encoder and the tagger")
    add_config_argument(encoders)


def run(args: argparse.Namespace) -> int:
    """Run ``nurie models``."""
    actions = {
        "list": _list,
        "register": _register,
        "promote": _promote,
        "verify": _verify,
        "train-vae": _train_vae,
        "train-encoders": _train_encoders,
    }
    actions[args.action](args)
    return 0


def _list(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from nurie.tracking.registry import list_models

    table = Table("model", "version", "aliases", "sha256 of its manifest", "run")
    for model in list_models(args.store):
        aliases = ", ".join(model.aliases)
        table.add_row(model.name, model.version, aliases, model.digest[:16], model.run_id or "")
    Console().print(table)


def _register(args: argparse.Namespace) -> None:
    from nurie.tracking.registry import register_model

    version = register_model(args.store, args.folder, args.name, args.alias, None)
    print(f"models:/{args.name}/{version} ({args.alias})")


def _promote(args: argparse.Namespace) -> None:
    from nurie.tracking.registry import promote

    version = promote(args.store, args.model, args.alias)
    print(f"{args.model}: version {version} is now {args.alias}")


def _verify(args: argparse.Namespace) -> None:
    from nurie.checkpoints.manifest import verify_manifest

    print(f"{args.folder}: complete and unchanged (sha256 {verify_manifest(args.folder)})")


def _train_vae(args: argparse.Namespace) -> None:
    config = load(args.config, args.settings, VaeTrainConfig)
    from nurie.training.vae import train_vae

    print(f"autoencoder: {train_vae(config)}")


def _train_encoders(args: argparse.Namespace) -> None:
    config = load(args.config, args.settings, EncodersTrainConfig)
    from nurie.training.encoders import train_encoders

    print(f"image encoder and tagger: {train_encoders(config)}")
