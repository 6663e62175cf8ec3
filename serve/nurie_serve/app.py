"""The Ray Serve application, for ``serve deploy`` and for ``nurie serve``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application

from nurie.config.serve import ServeConfig
from nurie_serve.colorizer import Colorizer
from nurie_serve.errors import RETRY_AFTER_S
from nurie_serve.ingress import Ingress
from nurie_serve.model import ModelLoader, load_model

APP_NAME = "nurie"
HEALTH_CHECK_PERIOD_S = 1.0
DRAIN_MARGIN_S = 10.0
"""Beyond the deadline, for writing the last answers."""
BACKOFF_S, MAX_BACKOFF_S = 0.05, 0.5
"""Time between two looks at busy replicas, for each of them; and at most, as is usual in Ray Serve.

A call stands for a job, but a replica takes several jobs at one. After a crowd the calls that are
left stand before those of new jobs, each of which waits for the next look."""
MAX_CONNECTIONS = 2000
"""Requests, waiting ones and event streams included, that the HTTP application holds at once."""


def build(args: ServeConfig | Mapping[str, Any]) -> Application:
    """Build the application; Ray Serve's ``import_path`` is ``nurie_serve.app:build``.

    Args:
        args: The settings, or (``args:`` of a Serve config file) the fields of ``ServeConfig``.

    Raises:
        pydantic.ValidationError: For an unknown field or a value out of range.
    """
    return bind(args if isinstance(args, ServeConfig) else ServeConfig(**args))


def bind(config: ServeConfig, load: ModelLoader = load_model) -> Application:
    """Bind the ingress to the colorizer.

    Args:
        config: The settings.
        load: How a replica gets its model.
    """
    config = _with_absolute_paths(config)
    return _ingress(config).bind(config, _colorizer(config).bind(config, load))


def _ingress(config: ServeConfig) -> serve.Deployment:
    deploy = serve.deployment(
        name="Ingress",
        num_replicas=1,
        max_ongoing_requests=MAX_CONNECTIONS,
        max_queued_requests=MAX_CONNECTIONS,
        backpressure_config={"status_code": 429, "retry_after_s": RETRY_AFTER_S},
        ray_actor_options={"num_cpus": 0, "runtime_env": _environment(1)},
        # A visitor may wait until the deadline; an old ingress goes when the last has an answer.
        graceful_shutdown_timeout_s=config.limits.deadline_s + DRAIN_MARGIN_S,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        logging_config={"encoding": config.log_format.upper()},
        # The new one answers before the old one goes; it needs no GPU.
        max_surge_percent=100,
    )
    return deploy(Ingress)


def _colorizer(config: ServeConfig) -> serve.Deployment:
    deploy = serve.deployment(
        name="Colorizer",
        max_ongoing_requests=config.max_ongoing_requests,
        # One replica at first even where none may be later: a model that cannot be loaded shows.
        autoscaling_config={
            **config.autoscaling.model_dump(),
            "initial_replicas": max(1, config.autoscaling.min_replicas),
        },
        ray_actor_options={
            "num_cpus": config.num_cpus,
            "num_gpus": config.num_gpus,
            "runtime_env": _environment(config.num_threads),
        },
        request_router_config={
            "max_backoff_s": min(MAX_BACKOFF_S, BACKOFF_S * config.autoscaling.max_replicas)
        },
        # A batch may take as long as a job; what is cut off is done again by another.
        graceful_shutdown_timeout_s=config.limits.deadline_s,
        max_surge_percent=config.max_surge_percent,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        logging_config={"encoding": config.log_format.upper()},
    )
    return deploy(Colorizer)


def _environment(num_threads: int) -> dict[str, Any]:
    # Spinning OpenMP threads slow a replica down by an order of magnitude as soon as another
    # process wants the core.
    return {"env_vars": {"OMP_NUM_THREADS": str(num_threads), "OMP_WAIT_POLICY": "PASSIVE"}}


def _with_absolute_paths(config: ServeConfig) -> ServeConfig:
    """Replicas may run in another directory."""
    changes: dict[str, Any] = {}
    if "://" not in config.model and not config.model.startswith("models:/"):
        changes["model"] = str(Path(config.model).expanduser().absolute())
    prefix, separator, path = config.tracking_uri.partition(":///")
    if prefix == "sqlite" and separator and path and not path.startswith("/"):
        changes["tracking_uri"] = f"{prefix}:///{Path(path).absolute()}"
    return config.model_copy(update=changes)
