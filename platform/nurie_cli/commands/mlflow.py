"""Start the experiment dashboard on this machine; stays until Ctrl+C.

Examples:
  nurie mlflow
  nurie mlflow --port 5001 --store sqlite:///mlflow.db
"""

from __future__ import annotations

import argparse
import os
import sys


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--store", default="sqlite:///mlflow.db", help="MLflow tracking store")
    parser.add_argument("--host", default="127.0.0.1", help="address (default: this machine only)")
    parser.add_argument("--port", type=int, default=5000, help="port (default: 5000)")


def run(args: argparse.Namespace) -> int:
    """Run ``nurie mlflow``."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", args.store]
    command += ["--host", args.host, "--port", str(args.port), "--workers", "1"]
    # The dashboard only shows runs; its job executor would start further processes.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.execv(sys.executable, command)
