"""Run a training: the chain of stages in the file, tracked in MLflow.

The same name continues where an earlier run stopped.

Examples:
  nurie train configs/train/nano.yaml
  nurie train configs/train/nano.yaml --dry-run --stages.backbone.steps 50
  nurie train configs/train/nano-full.yaml --name mine --output runs/mine
"""

from __future__ import annotations

import argparse
import json
import shlex

import yaml

from nurie.config.train import TrainConfig
from nurie_cli.settings import add_config_argument, load


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_config_argument(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the complete configuration and DeepSpeed's, and stop",
    )
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="fresh weights instead of `init_from` (the frozen parts stay)",
    )


def run(args: argparse.Namespace) -> int:
    """Run ``nurie train``."""
    config = load(args.config, args.settings, TrainConfig)
    if args.dry_run:
        print(_resolved(config, args), end="")
        return 0
    from nurie_pipelines.train.run import train

    model_folder = train(config, from_scratch=args.from_scratch)
    print(f"model: {model_folder}")
    return 0


def _resolved(config: TrainConfig, args: argparse.Namespace) -> str:
    """The complete run as YAML; what only derives from it stands below in comments."""
    if args.from_scratch:
        config = config.model_copy(update={"init_from": None})
    lines = [yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).rstrip()]
    if config.engine.kind == "deepspeed":
        from nurie_pipelines.train.deepspeed_json import deepspeed_config

        for stage in config.stages:
            generated = json.dumps(
                deepspeed_config(stage, config.engine, config.engine.num_workers)
            )
            lines.append(f"# DeepSpeed, stage {stage.kind}: {generated}")
    words = shlex.join(["nurie", "plan", args.config, *args.settings])
    lines.append(f"# Parameters, memory, hours and cost: {words} --gpu h100")
    return "\n".join(lines) + "\n"
