"""Metrics on disk first, in MLflow later: a dead tracker never stops or slows a trainer.

The worker appends to ``metrics.jsonl``, machines to ``system*.jsonl``. A thread of the driver tails
these files and the sample grids beside them, and sends what is new until the tracker has confirmed
it. Everything stays on disk, so a restarted driver goes on where the old one stopped;
``.outbox.json`` remembers how far that is.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType

from PIL import Image, UnidentifiedImageError

from nurie.checkpoints.manifest import write_atomically
from nurie.tracking.tracker import (
    MetricPoint,
    Tracker,
    TrackingError,
    TrackingUnavailable,
)

_log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
SYSTEM_FILES = "system*.jsonl"
SAMPLES_FOLDER = "samples"
STATE_FILE = ".outbox.json"
_POINTS_PER_BATCH = 500
_LONGEST_PAUSE_S = 30.0
_STEP_IN_NAME = re.compile(r"step-(\d+)$")


class MetricOutbox:
    """Appends metrics to a file of JSON lines; each line is on disk when ``append`` returns.

    Args:
        path: The file, ``metrics.jsonl`` in the run's folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.path.open("ab")
        if self._ends_inside_a_line():
            self._stream.write(b"\n")

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the values of one step; values must be numbers, NaN and infinity included."""
        line = {
            "step": int(step),
            "time": time.time_ns() // 1_000_000,
            "metrics": {name: float(value) for name, value in metrics.items()},
        }
        # One write per line: a kill leaves at most one partial line, at the end.
        self._stream.write(json.dumps(line).encode() + b"\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _ends_inside_a_line(self) -> bool:
        if self.path.stat().st_size == 0:
            return False
        with self.path.open("rb") as stream:
            stream.seek(-1, 2)
            return stream.read(1) != b"\n"


class OutboxSender:
    """A thread that sends an outbox to the tracker until everything is confirmed.

    The steps of a metric only rise: what a resumed run repeats is sent once, as it was at first.

    Args:
        tracker: Where to send to.
        run: The run that gets the metrics: its id, or what opens it and returns the id. That is
            called in the thread, again and again while the tracker does not answer.
        folder: Run folder with ``metrics.jsonl``, ``system*.jsonl`` and ``samples/*.png``; all may
            appear later.
        interval: Seconds between looks at the folder.
    """

    def __init__(
        self,
        tracker: Tracker,
        run: str | Callable[[], str],
        folder: str | Path,
        interval: float = 1.0,
    ) -> None:
        self.tracker = tracker
        self.run_id = ""
        self._open = run if callable(run) else partial(str, run)
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.interval = interval
        self.rejected = 0
        self._offsets: dict[str, int] = {}
        self._last_steps: dict[str, int] = {}
        self._images: set[str] = set()
        self._closing = threading.Event()
        self._deadline = math.inf
        self._complete = False
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def close(self, timeout: float = 60.0) -> bool:
        """Send the rest and stop.

        Args:
            timeout: Seconds to wait for a tracker that does not answer.

        Returns:
            Whether everything has been sent. The rest stays on disk; the next sender of the same
            folder and run sends it.
        """
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._thread.join(timeout + 1)
        if not self._complete:
            _log.warning("not all metrics of %s have reached the tracker", self.folder)
        if self.rejected:
            _log.warning("the tracker rejected %d items of %s", self.rejected, self.folder)
        return self._complete

    def __enter__(self) -> OutboxSender:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        pause = self.interval
        while not self._complete:
            closing = self._closing.is_set()
            try:
                self._send_new()
                pause = self.interval
                # What was written before ``close`` has been seen by this round.
                self._complete = closing
            except (TrackingUnavailable, TrackingError, OSError) as error:
                if pause == self.interval:
                    _log.warning("%s keeps its metrics for later: %s", self.folder, error)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
                if closing and time.monotonic() >= self._deadline:
                    return
                if closing:
                    time.sleep(min(self.interval, 1.0))
            self._closing.wait(pause)

    def _send_new(self) -> None:
        if not self.run_id:
            self.run_id = self._open()
            self._load_state()
        for path in [self.folder / METRICS_FILE, *sorted(self.folder.glob(SYSTEM_FILES))]:
            while self._send_metrics(path):
                pass
        for path in sorted((self.folder / SAMPLES_FOLDER).glob("*.png")):
            if path.name not in self._images:
                self._send_image(path)

    def _send_metrics(self, path: Path) -> bool:
        """Send one batch of a file; returns whether there may be more."""
        before = self._offsets.get(path.name, 0)
        points, offset = self._read_batch(path, before)
        if offset == before:
            return False
        if points:
            try:
                self.tracker.log_points(self.run_id, points)
            except TrackingError as error:
                self.rejected += len(points)
                _log.error("%d values are not logged: %s", len(points), error)
        self._offsets[path.name] = offset
        self._last_steps |= {point.name: point.step for point in points}
        self._save_state()
        return True

    def _send_image(self, path: Path) -> None:
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except (UnidentifiedImageError, OSError):
            # Still being written; the next round finds it complete.
            return
        found = _STEP_IN_NAME.search(path.stem)
        try:
            if found:
                self.tracker.log_image(self.run_id, image, SAMPLES_FOLDER, step=int(found.group(1)))
            else:
                self.tracker.log_image(self.run_id, image, f"{SAMPLES_FOLDER}/{path.name}")
        except TrackingError as error:
            self.rejected += 1
            _log.error("%s is not logged: %s", path, error)
        self._images.add(path.name)
        self._save_state()

    def _read_batch(self, path: Path, offset: int) -> tuple[list[MetricPoint], int]:
        """New points of complete lines from ``offset`` on, and the offset after them."""
        points: list[MetricPoint] = []
        last = dict(self._last_steps)
        if not path.exists():
            return points, offset
        with path.open("rb") as stream:
            stream.seek(offset)
            for line in stream:
                if not line.endswith(b"\n") or len(points) >= _POINTS_PER_BATCH:
                    break
                offset += len(line)
                for point in _parse(line, path):
                    if point.step > last.get(point.name, -1):
                        points.append(point)
                        last[point.name] = point.step
        return points, offset

    def _load_state(self) -> None:
        path = self.folder / STATE_FILE
        if not path.exists():
            return
        state = json.loads(path.read_bytes())
        offsets = state.get("offsets")
        if state["run_id"] != self.run_id or offsets is None:
            return  # Nothing has been sent to this run, or an older version does not say what.
        if any(offset > _size(self.folder / name) for name, offset in offsets.items()):
            return  # A new file under an old name.
        self._offsets, self._last_steps = offsets, state["last_steps"]
        self._images = set(state["images"])

    def _save_state(self) -> None:
        state = {
            "run_id": self.run_id,
            "offsets": self._offsets,
            "last_steps": self._last_steps,
            "images": sorted(self._images),
        }
        write_atomically(self.folder / STATE_FILE, json.dumps(state).encode())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _parse(line: bytes, path: Path) -> list[MetricPoint]:
    """Points of one line; a line cut off by a kill is reported and gives none."""
    if not line.strip():
        return []
    try:
        row = json.loads(line)
        return [
            MetricPoint(name, _finite_or_nan(value), int(row["step"]), int(row["time"]))
            for name, value in row["metrics"].items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        _log.warning("%s: skipped the damaged line %r", path, line[:80])
        return []


def _finite_or_nan(value: float) -> float:
    # MLflow's REST API has no infinity.
    return float(value) if math.isfinite(value) else math.nan
