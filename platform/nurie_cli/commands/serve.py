"""Start the HTTP endpoint and the page; stays until Ctrl+C.

Examples:
  nurie serve
  nurie serve configs/serve/nano.yaml --port 8080 --model assets/nano
"""

from __future__ import annotations

import argparse

from nurie.config.serve import ServeConfig
from nurie_cli.settings import add_config_argument, load


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_config_argument(parser, default="configs/serve/nano.yaml")


def run(args: argparse.Namespace) -> int:
    """Run ``nurie serve``."""
    config = load(args.config, args.settings, ServeConfig)
    from nurie_serve.run import serve

    serve(config, blocking=True)
    return 0
