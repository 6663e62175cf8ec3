"""The experiment page as it opens from ``nurie mlflow``: columns and charts are chosen already.

MLflow's page restores a *shared view* that lies in a tag of the experiment: search, columns, charts
and their sections as JSON, deflated, in base64. Whoever opens it can go back to their own view, or
keep this one; a click on a chart changes it for them alone.
"""

from __future__ import annotations

import base64
import fnmatch
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nurie.tracking.outbox import SAMPLES_FOLDER

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STAGE_TAG = "nurie.stage"
"""Tag of the runs that have curves: those of the stages."""
VIEW_KEY = "nurie"
_VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
_MAX_TAG_LENGTH = 5000
_STEP_IN_PATH = re.compile(r"\+step\+(\d+)\+")
_COLUMNS = (
    f"tags.`{STAGE_TAG}`",
    "params.`steps`",
    "attributes.`Dataset`",
    "metrics.`val/loss`",
    "metrics.`perf/samples_per_second`",
)
_CHARTS = {
    "Losses": (("loss/diffusion",), ("loss/gram_*",), ("grad_norm",)),
    "Unseen samples, fixed noise": (
        ("val/loss", "val/loss_wrong_reference"),
        ("val/loss_t[0-9]*",),
        ("val/gram_*",),
    ),
    "Speed": (
        ("perf/samples_per_second",),
        ("perf/data_wait_percent",),
        ("perf/flops_utilization_percent",),
        ("perf/tflops_per_second",),
        ("perf/memory_*",),
    ),
}
"""Section -> its charts -> patterns of the metrics that a chart compares."""
_PICTURES = "Pictures"
_MORE_SECTIONS = ("loss", "val", "perf", "checkpoint", "Model metrics", "System metrics")
"""Where MLflow puts a chart of every metric by itself; closed in this view."""


def page(experiment_id: str, *, shared: bool) -> str:
    """Path of an experiment's runs, as charts in the shared view if it has one.

    MLflow's own first page is about language models.
    """
    path = f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    return f"{path}&compareRunsMode=CHART&viewStateShareKey={VIEW_KEY}" if shared else path


def write_view(client: MlflowClient, experiment_id: str) -> bool:
    """Write the shared view of an experiment, unless it is there.

    Returns:
        Whether the experiment has runs of stages, and so the view.
    """
    filter_string = f"tags.`{STAGE_TAG}` != ''"
    runs = client.search_runs([experiment_id], filter_string, max_results=50)
    if not runs:
        return False
    names = {name for run in runs for name in run.data.metrics}
    value = encode_view(build_view(sorted(names), _last_picture(client, runs)))
    assert len(value) <= _MAX_TAG_LENGTH, len(value)
    if client.get_experiment(experiment_id).tags.get(_VIEW_TAG) != value:
        client.set_experiment_tag(experiment_id, _VIEW_TAG, value)
    return True


def build_view(metrics: Sequence[str], picture_step: int = 0) -> dict[str, Any]:
    """State of the page, for runs with these metrics.

    Args:
        metrics: Names of all metrics, sorted.
        picture_step: Step whose sample grids are shown until the slider is moved.
    """
    charts: list[dict[str, Any]] = []
    for section, rows in _CHARTS.items():
        for patterns in rows:
            found = [name for pattern in patterns for name in fnmatch.filter(metrics, pattern)]
            if found:
                charts.append(_line_chart(section, found))
    pictures = {
        "type": "IMAGE",
        "imageKeys": [SAMPLES_FOLDER],
        "step": picture_step,
        "showRunParams": False,
    }
    charts.append(_card(_PICTURES, SAMPLES_FOLDER) | pictures)
    return {
        "searchFilter": f"tags.`{STAGE_TAG}` != ''",
        # Written like this, since MLflow would nest the stages under closed parents if it were its
        # own default, and draw nothing.
        "orderByKey": "attributes.`start_time`",
        "orderByAsc": False,
        "selectedColumns": list(_COLUMNS),
        "compareRunCharts": charts,
        "compareRunSections": [
            *(_section(name, shown=True) for name in _CHARTS),
            _section(_PICTURES, shown=True) | {"columns": 1, "cardHeight": 640},
            *(_section(name, shown=False) for name in _MORE_SECTIONS),
        ],
        # Else MLflow would sort the sections by name.
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }


def encode_view(view: dict[str, Any]) -> str:
    """A view as MLflow's page writes and reads it."""
    packed = zlib.compress(json.dumps(view, separators=(",", ":")).encode(), 9)
    return f"deflate;{base64.b64encode(packed).decode()}"


def decode_view(value: str) -> dict[str, Any]:
    """The inverse of ``encode_view``."""
    return json.loads(zlib.decompress(base64.b64decode(value.removeprefix("deflate;"))))


def _last_picture(client: MlflowClient, runs: Iterable[Run]) -> int:
    """Step of the last picture of the newest run that has any."""
    for run in runs:
        if run.data.tags.get("mlflow.loggedImages"):
            paths = [entry.path for entry in client.list_artifacts(run.info.run_id, "images")]
            steps = [_STEP_IN_PATH.search(path) for path in paths]
            return max((int(found.group(1)) for found in steps if found), default=0)
    return 0


def _card(section: str, name: str) -> dict[str, Any]:
    return {
        "uuid": f"nurie {section} {name}",
        "metricSectionId": f"nurie {section}",
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": False,
    }


def _line_chart(section: str, metrics: list[str]) -> dict[str, Any]:
    return _card(section, metrics[0]) | {
        "type": "LINE",
        "metricKey": metrics[0],
        "selectedMetricKeys": metrics,
        "lineSmoothness": 0,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "scaleType": "linear",
        "range": {},
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _section(name: str, *, shown: bool) -> dict[str, Any]:
    return {
        "uuid": f"nurie {name}",
        "name": name,
        "display": shown,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
    }
