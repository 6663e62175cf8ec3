"""Start the experiment dashboard on this machine; stays until Ctrl+C.

Examples:
  nurie mlflow
  nurie mlflow --port 5001 --store sqlite:///mlflow.db
"""

from __future__ import annotations

import argparse
import os


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--store", default="sqlite:///mlflow.db", help="MLflow tracking store")
    parser.add_argument("--host", default="127.0.0.1", help="address (default: this machine only)")
    parser.add_argument("--port", type=int, default=5000, help="port (default: 5000)")
    parser.add_argument(
        "--allowed-hosts",
        metavar="HOSTS",
        help="host names to answer to, as `mlflow.example.org:*`",
    )


def run(args: argparse.Namespace) -> int:
    """Run ``nurie mlflow``."""
    from nurie.tracking.server import LOOPBACK_HOSTS, command, runs_pages

    hosts = args.allowed_hosts or LOOPBACK_HOSTS
    words, environment = command(args.store, args.host, args.port, hosts)
    for name, page in runs_pages(args.store).items():
        print(f"{name}: http://{args.host}:{args.port}{page}", flush=True)
    os.execve(words[0], words, environment)
