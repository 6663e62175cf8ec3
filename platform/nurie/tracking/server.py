"""The command that serves the MLflow pages of a tracking store."""

from __future__ import annotations

import os
import sys

from nurie.tracking.dashboard import page, write_view
from nurie.tracking.store import artifact_root, tracking_uri

LOOPBACK_HOSTS = "localhost:*,127.0.0.1:*,[::1]:*"


def command(
    uri: str, host: str = "127.0.0.1", port: int = 5000, allowed_hosts: str = LOOPBACK_HOSTS
) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of ``mlflow server``.

    Job execution is off (it costs eight more processes and 1.3 GB of memory), and requests under
    other host names are refused: the server has no login.

    Args:
        uri: The store, ``sqlite:///FILE`` or another database.
        host: Address to listen on.
        port: Port to listen on.
        allowed_hosts: Host headers that are answered.

    Raises:
        ValueError: ``uri`` is itself the address of a server.
    """
    if uri.startswith(("http://", "https://")):
        raise ValueError(f"{uri}: is a server already; open it in a browser")
    root = artifact_root(uri)
    argv = [sys.executable, "-m", "mlflow", "server"]
    argv += ["--backend-store-uri", tracking_uri(uri)]
    argv += ["--artifacts-destination", str(root)] if root else []
    argv += ["--host", host, "--port", str(port), "--workers", "1"]
    argv += ["--allowed-hosts", allowed_hosts]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return argv, environment


def runs_pages(uri: str) -> dict[str, str]:
    """Path of the page with the runs, by experiment, the last used first.

    Where an experiment has trained stages, its page opens with the charts that matter.

    Args:
        uri: The store; it is made if there is none.
    """
    from nurie.tracking.mlflow_tracker import connect, mlflow_errors

    client = connect(uri)
    with mlflow_errors():
        experiments = client.search_experiments(order_by=["last_update_time DESC"])
        return {
            each.name: page(each.experiment_id, shared=write_view(client, each.experiment_id))
            for each in experiments
        }
