"""The tracker on MLflow: explicit run ids through ``MlflowClient``, no global state."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

# Defaults of MLflow retry a dead server for minutes; the outbox does the retrying here.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException, RestException
from mlflow.tracking.context.registry import resolve_tags
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

import nurie
from nurie.tracking.origin import source_commit
from nurie.tracking.store import artifact_root, tracking_uri
from nurie.tracking.tracker import (
    DatasetVersion,
    MetricPoint,
    RunStatus,
    TrackingError,
    TrackingUnavailable,
)

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

_log = logging.getLogger(__name__)

PARENT_TAG = "mlflow.parentRunId"
MAX_VALUE_LENGTH = 6000
MAX_NAME_LENGTH = 250
MAX_DIGEST_LENGTH = 36
_PARAMS_PER_BATCH = 100
_METRICS_PER_BATCH = 1000
_FORBIDDEN = re.compile(r"[^\w\-. :/]")
_PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "BAD_REQUEST",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
}


@contextmanager
def mlflow_errors() -> Iterator[None]:
    """Turn MLflow's errors into ``TrackingUnavailable`` (later) or ``TrackingError`` (never)."""
    try:
        yield
    except MlflowException as error:
        if error.error_code in _PERMANENT or (
            isinstance(error, RestException) and 400 <= error.get_http_status_code() < 500
        ):
            raise TrackingError(f"MLflow: {error}") from error
        raise TrackingUnavailable(f"MLflow: {error}") from error
    except (RequestException, SQLAlchemyError, OSError) as error:
        raise TrackingUnavailable(f"MLflow: {error}") from error


def connect(uri: str) -> MlflowClient:
    """A client whose tracking store and model registry are both at ``uri``."""
    # Creating the SQLite schema logs a line per migration, several dozen.
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    uri = tracking_uri(uri)
    with mlflow_errors():
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


class MlflowTracker:
    """Runs of one experiment.

    Args:
        uri: ``sqlite:///FILE`` (artifacts go to ``mlartifacts`` beside the file) or a server's URL.
        experiment: Name of the experiment; created when it is new.

    A server is asked for the first time when the first run is started.

    Raises:
        TrackingUnavailable: The store does not answer.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = tracking_uri(uri)
        self.experiment = experiment
        self.client = connect(uri)

    @cached_property
    def experiment_id(self) -> str:
        """Id of the experiment.

        Raises:
            TrackingUnavailable: The store does not answer.
            TrackingError: The experiment has been deleted.
        """
        with mlflow_errors():
            return self._find_or_create(self.experiment)

    def start_run(
        self,
        name: str,
        *,
        parent_run_id: str | None = None,
        run_id: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        start_time: int | None = None,
    ) -> str:
        """Start a run, below ``parent_run_id`` when given, or continue ``run_id``.

        A ``run_id`` that the store does not know (a new store, say) starts a new run that carries
        it as tag ``nurie.continues``, so that training survives the loss of its dashboard.

        Returns:
            The id of the run, which is RUNNING.
        """
        all_tags = {key: str(value) for key, value in (tags or {}).items()}
        if parent_run_id:
            all_tags[PARENT_TAG] = parent_run_id
        with mlflow_errors():
            if run_id and self._continue(run_id, all_tags):
                started = run_id
            else:
                if run_id:
                    all_tags["nurie.continues"] = run_id
                run = self.client.create_run(
                    self.experiment_id, start_time, origin_tags() | all_tags, run_name=name
                )
                started = run.info.run_id
        self.log_params(started, params or {})
        return started

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Log settings; nested mappings and lists get dotted names, long values are cut.

        MLflow's parameters never change. One that is already there keeps its value; if a continued
        run comes with another, that goes to the tag ``changed.NAME``.
        """
        flat = flatten_params(params)
        if not flat:
            return
        with mlflow_errors():
            old = self.client.get_run(run_id).data.params
            new = [Param(name, value) for name, value in flat.items() if name not in old]
            for first in range(0, len(new), _PARAMS_PER_BATCH):
                self.client.log_batch(run_id, params=new[first : first + _PARAMS_PER_BATCH])
            for name, value in flat.items():
                if old.get(name, value) != value:
                    self.client.set_tag(run_id, f"changed.{name}"[:MAX_NAME_LENGTH], value)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log values of one step, stamped with the present time."""
        now = time.time_ns() // 1_000_000
        self.log_points(
            run_id,
            [MetricPoint(name, float(value), step, now) for name, value in metrics.items()],
        )

    def log_points(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Log many values. A point that is already stored changes nothing."""
        metrics = [
            Metric(clean_name(point.name), point.value, point.timestamp, point.step)
            for point in points
        ]
        with mlflow_errors():
            for first in range(0, len(metrics), _METRICS_PER_BATCH):
                self.client.log_batch(run_id, metrics=metrics[first : first + _METRICS_PER_BATCH])

    def log_image(self, run_id: str, image: Image, path: str, step: int | None = None) -> None:
        """Log a picture.

        Args:
            run_id: The run.
            image: The picture.
            path: Path of the artifact (``samples/x.png``); with ``step`` the name of a series.
            step: Makes the picture a frame of the series, which MLflow shows with a slider.
        """
        with mlflow_errors():
            if step is None:
                self.client.log_image(run_id, image, artifact_file=path)
            elif not self._has_frame(run_id, clean_name(path), step):
                self.client.log_image(
                    run_id, image, key=clean_name(path), step=step, synchronous=True
                )

    def log_dataset(self, run_id: str, data: DatasetVersion) -> None:
        """Log which data a run was trained on, as MLflow's input of context ``training``."""
        source = json.dumps({"uri": data.source})
        profile = json.dumps({"num_rows": sum(data.counts.values()), **data.counts})
        entity = Dataset(
            data.name, data.digest[:MAX_DIGEST_LENGTH], "local", source, profile=profile
        )
        tags = [InputTag("mlflow.data.context", "training"), InputTag("sha256", data.digest)]
        with mlflow_errors():
            self.client.log_inputs(run_id, [DatasetInput(entity, tags)])

    def log_artifact(self, run_id: str, path: Path, artifact_path: str | None = None) -> None:
        """Log a file into the folder ``artifact_path`` of the run's artifacts."""
        with mlflow_errors():
            self.client.log_artifact(run_id, str(path), artifact_path)

    def end_run(self, run_id: str, status: RunStatus = "FINISHED") -> None:
        """Close a run."""
        with mlflow_errors():
            self.client.set_terminated(run_id, status)

    def _find_or_create(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            root = artifact_root(self.uri)
            location = root.as_uri() if root else None
            try:
                return self.client.create_experiment(name, artifact_location=location)
            except MlflowException:
                # Another process may have created it in between.
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"experiment {name!r} of {self.uri} is deleted; restore it "
                f"(mlflow experiments restore -x {found.experiment_id}) or take another name"
            )
        return found.experiment_id

    def _has_frame(self, run_id: str, key: str, step: int) -> bool:
        """Whether a picture is stored: its answer may have been lost, and names are random."""
        begin = f"images/{key.replace('/', '~')}+step+{step}+"
        found = [entry.path for entry in self.client.list_artifacts(run_id, "images")]
        # The smaller copy is written last.
        return any(path.startswith(begin) and path.endswith(".webp") for path in found)

    def _continue(self, run_id: str, tags: Mapping[str, str]) -> bool:
        try:
            self.client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            _log.warning("%s does not know run %s; a new one is started", self.uri, run_id)
            return False
        if tags:
            self.client.log_batch(run_id, tags=[RunTag(key, text) for key, text in tags.items()])
        return True


def origin_tags() -> dict[str, str]:
    """Who started the run, with which program, from which git commit, where that is known."""
    tags = {**resolve_tags(), "nurie.version": nurie.__version__}
    commit, branch, dirty = source_commit()
    known = {"commit": commit, "branch": branch, "dirty": dirty}
    found = {
        f"mlflow.source.git.{name}": str(value)
        for name, value in known.items()
        if value is not None
    }
    return tags | found


def clean_name(name: str) -> str:
    """A name that MLflow accepts: letters, digits and ``_-. :/``, at most 250 characters."""
    return _FORBIDDEN.sub("_", name)[:MAX_NAME_LENGTH]


def flatten_params(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted name -> text, cut to MLflow's 6000 characters; lists of mappings are numbered."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        name = f"{prefix}{key}"
        nested = isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value)
        if nested:
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat.update(flatten_params(value, f"{name}."))
        else:
            flat[clean_name(name)] = _shorten(str(value))
    return flat


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - 3] + "..."
