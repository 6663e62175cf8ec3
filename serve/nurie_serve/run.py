"""Starting and stopping the application on this machine or in the cluster of RAY_ADDRESS."""

from __future__ import annotations

import os
import signal
import socket
import threading
from http import HTTPStatus

import ray
import requests
from ray import serve as ray_serve
from ray.serve import Application

from nurie.config.serve import ServeConfig
from nurie_serve.app import APP_NAME, build
from nurie_serve.jobs.replicas import ReplicaBoard
from nurie_serve.jobs.store import JobStore
from nurie_serve.proxy import MAX_BODY_VARIABLE
from nurie_serve.tracing import ENDPOINT_VARIABLE, EXPORTER, EXPORTER_VARIABLE, to_collector

ENVIRONMENT = {
    # A dead proxy is replaced after about 5 seconds instead of 30.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
    # A busy machine may need longer than the default 5 seconds to start one, and after three
    # such failures starting Serve fails.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Visitors' headers must not switch time-outs off.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "nurie_serve.proxy:middleware",
}
"""What the process that starts Ray must have in its environment; Serve has no other way in."""
OBJECT_STORE_BYTES = 2**29
"""Store of a local Ray; it holds pictures on their way, while Ray would take a third of memory."""
READY_TIMEOUT_S = 30.0


def serve(config: ServeConfig, blocking: bool = True) -> str:
    """Deploy the application and wait until a replica answers.

    Args:
        config: The application's settings.
        blocking: Serve until SIGINT or SIGTERM, then drain, until a second one at most; else return
            while it runs on.

    Returns:
        The address of the page.

    Raises:
        ValueError: If the port or the folder of jobs is taken.
        RuntimeError: If the application does not start; the message holds the replica's error.
    """
    address = start(config, build(config))
    print(f"nurie is ready: {address}  (API: {address}/docs)", flush=True)
    print(who_comes_in(config), flush=True)
    if blocking:
        _wait_for_signal()
        print("finishing what runs; once more to stop at once", flush=True)
        stop()
    return address


def who_comes_in(config: ServeConfig) -> str:
    """One line for the operator."""
    if config.keys_file is not None:
        return f"Requests need a key of {config.keys_file} (nurie keys list)."
    if config.open_to_network:
        return "OPEN: no keys, and everybody who reaches the port may use it."
    return "Open without keys, on this machine only; for others: nurie keys add NAME."


def start(config: ServeConfig, application: Application) -> str:
    """Deploy an application, wait until it answers, and return its address.

    Raises:
        ValueError: If the port or the folder of jobs is taken.
        RuntimeError: If it does not answer.
    """
    _check_jobs_are_its_own(config)
    _connect(config)
    address = config.address
    ray_serve.start(http_options={"host": config.host, "port": config.port})
    ray_serve.run(application, name=APP_NAME, route_prefix="/")
    _wait_ready(address)
    return address


def stop() -> None:
    """Take no new requests, finish those that run, and shut Ray Serve down."""
    # Deleting lets replicas finish what they hold; shutting down at once would cut it off. It ends
    # when their own time is over, which may be later than Ray Serve waits for it.
    while True:
        try:
            ray_serve.delete(APP_NAME)
            break
        except TimeoutError:
            continue
    ray_serve.shutdown()


def _connect(config: ServeConfig) -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if os.environ.get(ENDPOINT_VARIABLE):
        to_collector()  # fails here rather than in every replica
        os.environ.setdefault(EXPORTER_VARIABLE, EXPORTER)
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address="auto")
        return
    _check_port_is_free(config)
    os.environ.setdefault(MAX_BODY_VARIABLE, str(config.limits.max_body_bytes))
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=OBJECT_STORE_BYTES,
    )


def _check_jobs_are_its_own(config: ServeConfig) -> None:
    """Two endpoints on one store would make each other's pictures, with another model perhaps."""
    store = JobStore(config.jobs, config.max_queued_requests)
    other = ReplicaBoard(store, config.address).other_endpoint()
    store.close()
    if other is not None:
        raise ValueError(
            f"jobs.folder: {config.jobs.folder} is in use by the endpoint at {other}; give this "
            f"one a folder of its own, e.g. --jobs.folder runs/jobs-{config.port}"
        )


def _check_port_is_free(config: ServeConfig) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise ValueError(
                f"cannot listen on {config.host}:{config.port} ({error.strerror}); "
                "choose another with --port"
            ) from None


def _wait_ready(address: str) -> None:
    """The routes reach the proxy a moment after the application is running."""
    stopped = threading.Event()
    for _ in range(int(READY_TIMEOUT_S / 0.5)):
        try:
            if requests.get(f"{address}/readyz", timeout=5).status_code == HTTPStatus.OK:
                return
        except requests.ConnectionError:
            pass
        stopped.wait(0.5)
    raise RuntimeError(f"{address}/readyz did not answer within {READY_TIMEOUT_S:g} seconds")


def _wait_for_signal() -> None:
    stopped = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stopped.set())
    stopped.wait()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.default_int_handler)
