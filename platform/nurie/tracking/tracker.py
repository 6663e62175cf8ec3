"""What the rest of nurie knows about an experiment tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class TrackingError(ValueError):
    """The tracker refuses this request; trying again does not help."""


class TrackingUnavailable(RuntimeError):
    """The tracker does not answer; the same request may succeed later."""


class MetricPoint(NamedTuple):
    """One value of one metric; sending the same point twice stores it once."""

    name: str
    value: float
    step: int
    timestamp: int
    """Milliseconds since 1970."""


class DatasetVersion(NamedTuple):
    """The data that a run was trained on."""

    name: str
    digest: str
    """SHA-256 of the data set's manifest, which holds the digests of its files."""
    source: str
    """Folder or address."""
    counts: dict[str, int]
    """Samples per split."""


class Tracker(Protocol):
    """Runs named by explicit ids; there is no current run.

    Every method raises ``TrackingUnavailable`` or ``TrackingError``.
    """

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
        """Start a run (``start_time``: milliseconds since 1970), or continue ``run_id``.

        Returns:
            Its id.
        """
        ...

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Log settings; nested mappings and lists get dotted names."""
        ...

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log values of one step."""
        ...

    def log_points(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Log many values of many steps."""
        ...

    def log_image(self, run_id: str, image: Image, path: str, step: int | None = None) -> None:
        """Log a picture as artifact ``path``, or as frame ``step`` of the series ``path``."""
        ...

    def log_dataset(self, run_id: str, data: DatasetVersion) -> None:
        """Log which data a run was trained on."""
        ...

    def log_artifact(self, run_id: str, path: Path, artifact_path: str | None = None) -> None:
        """Log a file."""
        ...

    def end_run(self, run_id: str, status: RunStatus = "FINISHED") -> None:
        """Close a run."""
        ...
