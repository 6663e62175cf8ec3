"""The way into Ray: join the cluster of ``RAY_ADDRESS``, or start a small private one."""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
from pathlib import Path
from typing import Any

DRIVER_ENVIRONMENT = {
    # Ray Train registers a reported checkpoint at its next poll; at the default of 2 s a worker
    # killed shortly after a report falls back to the checkpoint before it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Keeps Ray from emptying CUDA_VISIBLE_DEVICES of CPU tasks, and its warning about that away.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # On a busy machine workers take minutes to start. ray.init() would wait for the first ones, and
    # for ever if they came after this time (60 s by default).
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_register_timeout_seconds": "300",
}
WORKER_ENVIRONMENT = {
    # Two torch threads collapse by 40x and more when another process uses a core.
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
QUIET_LOGGERS = {
    "ray._private.authentication": logging.ERROR,  # announces its token mode on every start
    "ray.data._internal.execution": logging.WARNING,  # plan and duration of every execution
    "ray.data._internal.progress": logging.ERROR,  # warns that its bars are off
}
OBJECT_STORE_BYTES = 10**9
MIN_LOGICAL_CPUS = 4
_NEEDED = ("raylet", "gcs_server")
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


class ClusterError(ValueError):
    """A cluster cannot be joined as asked."""


class ClusterLost(RuntimeError):
    """A private cluster has ended before the work that was sent to it."""


def connect(num_cpus: int | None = None) -> None:
    """Connect this process to Ray; does nothing when it is connected already.

    With ``RAY_ADDRESS`` set (Ray sets it inside every submitted job), that cluster is joined. Else
    a private cluster starts and ends with this process: no dashboard, sessions under a short folder
    of the user's own, an object store of at most 1 GB.

    Token authentication: a private cluster always demands the token of ``RAY_AUTH_TOKEN``,
    ``RAY_AUTH_TOKEN_PATH`` or ``~/.ray/auth_token``; without any of them, that file is written,
    readable by the user only. Joining uses the same places. ``RAY_AUTH_MODE`` set by the user is
    respected.

    Args:
        num_cpus: Logical CPUs of a private cluster (None: the machine's); at least 4, since two
            training workers and the data actors that feed them must fit. Unused when joining.

    Raises:
        ClusterError: ``RAY_ADDRESS`` is the address of the job API, or nothing answers there.
    """
    for name, value in DRIVER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    for name, level in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(level)
    if address:
        _join(address)
    else:
        _start(max(MIN_LOGICAL_CPUS, num_cpus or os.cpu_count() or 1))
    _silence_data_progress()


def _join(address: str) -> None:
    import ray
    from ray._private.authentication.authentication_token_setup import (
        maybe_enable_token_auth_if_token_available,
    )

    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"RAY_ADDRESS is {address}, the address of the job API: run `nurie submit -- ...` "
            "to send a job there, or unset RAY_ADDRESS to run on this machine"
        )
    # What a submitted job has set stays: Ray refuses to set a variable twice.
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    taken = job.get("runtime_env", {}).get("env_vars", {})
    environment = {k: v for k, v in WORKER_ENVIRONMENT.items() if k not in taken}
    # Ray looks for a token by itself only where it finds the cluster by itself.
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": environment},
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except ConnectionError as error:
        raise ClusterError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: start it, or unset RAY_ADDRESS "
            f"to run on this machine ({error})"
        ) from error


def _start(num_cpus: int) -> None:
    import ray

    _ensure_token()
    environment = dict(WORKER_ENVIRONMENT)
    if not any(Path(device).exists() for device in _GPU_DEVICES):
        environment["DS_ACCELERATOR"] = "cpu"
    ray.init(
        address="local",  # never attach to somebody else's cluster on the same machine
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        runtime_env={"env_vars": environment},
        log_to_driver=False,  # errors arrive through results; worker prints would cut the bars
        logging_level=logging.WARNING,
        _temp_dir=str(session_folder()),
    )


def has_ended() -> bool:
    """Whether processes of this process's private cluster have ended; never of a joined one.

    Who waits for a result would not notice: Ray asks those that are gone, for a minute and more.
    """
    from ray._private import worker

    node: Any = worker._global_node
    return node is not None and any(name in _NEEDED for name, _ in node.dead_processes())


def session_folder() -> Path:
    """Folder of private clusters: short (a socket path ends at 107 bytes) and the user's own.

    Returns:
        A folder that only this user can enter.

    Raises:
        ClusterError: The folder belongs to somebody else.
    """
    parent = Path(f"/tmp/nurie-{os.getuid()}")
    parent.mkdir(mode=0o700, exist_ok=True)
    if parent.is_symlink() or parent.stat().st_uid != os.getuid():
        raise ClusterError(f"{parent} belongs to another user: its owner has to remove it")
    parent.chmod(0o700)
    return parent / "ray"  # one level down, since Ray opens its folder to everybody


def _ensure_token() -> None:
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        # Ray would write this file too, but readable by everybody on the machine.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))


def _silence_data_progress() -> None:
    """Switch Ray Data's own bars off where it was imported before the environment was set."""
    if "ray.data" in sys.modules:
        from ray.data import DataContext

        DataContext.get_current().enable_progress_bars = False
