"""Measure a model on unseen pictures with right, same-palette and wrong references.

Writes a table and a contact sheet and logs both to MLflow.

Examples:
  nurie evaluate configs/eval/nano.yaml
  nurie evaluate configs/eval/nano.yaml --model assets/nano --output runs/shipped-evaluation
"""

from __future__ import annotations

import argparse

from nurie.config.evaluate import EvaluateConfig
from nurie_cli.settings import add_config_argument, load


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_config_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``nurie evaluate``."""
    config = load(args.config, args.settings, EvaluateConfig)
    from nurie_pipelines.evaluate.run import evaluate

    evaluate(config)
    print(f"table and contact sheet: {config.output}")
    return 0
