"""Run a command as a job on a Ray cluster; streams its log and returns its exit code.

Examples:
  nurie submit --address http://head:8265 -- train configs/train/sdxl.yaml
  nurie submit -- data build configs/data/characters.yaml     (uses $RAY_ADDRESS)
"""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--address", help="the cluster's dashboard, as http://head:8265 (default: $RAY_ADDRESS)"
    )
    parser.add_argument("words", nargs="+", metavar="-- COMMAND", help="a nurie command")


def run(args: argparse.Namespace) -> int:
    """Run ``nurie submit``."""
    from nurie_pipelines.jobs.submit import submit

    return submit(args.words, args.address)
