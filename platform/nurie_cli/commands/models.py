"""Models in the registry, model folders, and the frozen parts of the built-in model.

Examples:
  nurie models list
  nurie models register runs/nano/model --name nurie --alias challenger
  nurie models promote models:/nurie@challenger --alias champion
  nurie models verify assets/nano
  nurie models card runs/nano/model --evaluation runs/nano/evaluation
  nurie models convert released.safetensors -o models/released --components models/frozen
  nurie models init --preset sdxl --base stable-diffusion-xl -o models/start
  nurie models export runs/mine/backbone/checkpoints/step-000200 -o models/step-200
  nurie models parity reference.safetensors
  nurie models train-vae configs/train/nano-vae.yaml
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nurie.config.model import ModelConfig
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
    card = actions.add_parser("card", help="write an evaluation's numbers into the model card")
    card.add_argument("folder", type=Path, metavar="FOLDER")
    card.add_argument(
        "--evaluation", type=Path, required=True, metavar="DIR", help="output of nurie evaluate"
    )
    _configure_transfer(actions)
    export = actions.add_parser("export", help="a checkpoint of a run to a model folder")
    export.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    export.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parity = actions.add_parser("parity", help="compare with numeric references of a model")
    parity.add_argument("file", type=Path, metavar="FILE", help="weights, inputs and outputs")
    add_config_argument(actions.add_parser("train-vae", help="train the autoencoder"))
    encoders = actions.add_parser("train-encoders", help="train the image encoder and the tagger")
    add_config_argument(encoders)


def _configure_transfer(actions: Any) -> None:
    convert = actions.add_parser("convert", help="a released checkpoint to a model folder")
    convert.add_argument("file", type=Path, metavar="RELEASED.safetensors")
    init = actions.add_parser("init", help="start weights of a training from a stock SDXL")
    init.add_argument(
        "--base", type=Path, required=True, help="its folder (unet/, vae/) or its single file"
    )
    init.add_argument("--seed", type=int, default=0, help="of the fresh weights (default: 0)")
    for command in (convert, init):
        command.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
        command.add_argument(
            "--preset", default="sdxl", help="name in configs/model, or a YAML file (default: sdxl)"
        )
        command.add_argument(
            "--components",
            type=Path,
            metavar="DIR",
            help="model folder with vae, image_encoder and tagger, which are copied",
        )
        command.add_argument(
            "--dtype", choices=("float16", "bfloat16", "float32"), default="float16"
        )
        command.add_argument(
            "--allow-pickle", action="store_true", help="read a pickle; its origin must be trusted"
        )


def run(args: argparse.Namespace) -> int:
    """Run ``nurie models``."""
    actions = {
        "list": _list,
        "register": _register,
        "promote": _promote,
        "verify": _verify,
        "card": _card,
        "convert": _convert,
        "init": _init,
        "export": _export,
        "parity": _parity,
        "train-vae": _train_vae,
        "train-encoders": _train_encoders,
    }
    return actions[args.action](args) or 0


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


def _card(args: argparse.Namespace) -> None:
    from nurie.evaluation.card import write_card

    digest = write_card(args.folder, args.evaluation)
    print(f"{args.folder / 'README.md'}: written (sha256 of the folder {digest})")


def _convert(args: argparse.Namespace) -> None:
    import torch

    from nurie.checkpoints.transfer import convert_released

    preset, dtype = _preset(args.preset), getattr(torch, args.dtype)
    reports = convert_released(
        args.file, preset, args.output, dtype, allow_pickle=args.allow_pickle
    )
    _finish(args, preset, reports)


def _init(args: argparse.Namespace) -> None:
    import torch

    from nurie.checkpoints.transfer import start_from_sdxl

    preset, dtype = _preset(args.preset), getattr(torch, args.dtype)
    reports = start_from_sdxl(
        args.base, preset, args.output, dtype, seed=args.seed, allow_pickle=args.allow_pickle
    )
    _finish(args, preset, reports)


def _preset(name: str) -> ModelConfig:
    path = Path(name) if name.endswith((".yaml", ".yml")) else Path(f"configs/model/{name}.yaml")
    return load(str(path), (), ModelConfig)


def _finish(args: argparse.Namespace, preset: ModelConfig, reports: dict[str, Any]) -> None:
    """Show where the tensors come from; with the frozen parts it becomes a whole model folder."""
    from rich.console import Console
    from rich.table import Table

    from nurie.inference.folder import complete_folder

    console = Console()
    table = Table("component", "taken", "reshaped", "fresh", "unused", "for example")
    for name, report in reports.items():
        counts = [len(report.taken), len(report.reshaped), len(report.fresh), len(report.unused)]
        example = next(iter([*report.fresh, *report.unused]), "")
        table.add_row(name, *map(str, counts), example)
    console.print(table)
    if args.components is None:
        print(f"{args.output}: trained parts only; --components DIR makes it a model folder")
        return
    digest = complete_folder(args.output, args.components, preset)
    print(f"{args.output}: a complete model folder (sha256 {digest})")


def _export(args: argparse.Namespace) -> None:
    from nurie_pipelines.train.export import model_of_checkpoint

    if args.output.exists():
        raise FileExistsError(f"{args.output}: exists already; choose another -o")
    model_of_checkpoint(args.checkpoint, args.output)
    print(f"{args.output}: a complete model folder")


def _parity(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from nurie.checkpoints.parity import MAX_ABS_ERROR, MAX_RELATIVE_L2, check_parity

    table = Table("output", "max abs error", "relative L2 error", "")
    over = 0
    for row in check_parity(args.file):
        over += not row.ok
        verdict = "ok" if row.ok else "[red]over"
        table.add_row(row.name, f"{row.max_abs:.2e}", f"{row.relative_l2:.2e}", verdict)
    Console().print(table)
    limits = f"limits {MAX_ABS_ERROR:g} and {MAX_RELATIVE_L2:g}"
    print(f"{table.row_count} outputs, {over} over ({limits})")
    return 1 if over else 0


def _train_vae(args: argparse.Namespace) -> None:
    config = load(args.config, args.settings, VaeTrainConfig)
    from nurie.training.vae import train_vae

    print(f"autoencoder: {train_vae(config)}")


def _train_encoders(args: argparse.Namespace) -> None:
    config = load(args.config, args.settings, EncodersTrainConfig)
    from nurie.training.encoders import train_encoders

    print(f"image encoder and tagger: {train_encoders(config)}")
