"""Start the experiment dashboard on this machine; stays until Ctrl+C.

The address of an experiment opens the charts that matter: losses, unseen samples, speed, pictures.
For a server that runs already (--store http://...), its addresses are printed.

Examples:
  nurie mlflow
  nurie mlflow --port 5001 --store sqlite:///mlflow.db
  nurie mlflow --store http://mlflow:5000
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

    pages = runs_pages(args.store)
    runs_already = args.store.startswith(("http://", "https://"))
    address = args.store.rstrip("/") if runs_already else f"http://{args.host}:{args.port}"
    for name, page in pages.items():
        print(f"{name}: {address}{page}", flush=True)
    if runs_already:
        return 0
    hosts = args.allowed_hosts or LOOPBACK_HOSTS
    words, environment = command(args.store, args.host, args.port, hosts)
    os.execve(words[0], words, environment)
