"""The page that `nurie mlflow` opens: a shared view that MLflow's page can restore."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from PIL import Image

from nurie.tracking.dashboard import build_view, decode_view, encode_view
from nurie.tracking.mlflow_tracker import MlflowTracker
from nurie.tracking.server import runs_pages

METRICS = sorted(
    [
        *(f"loss/gram_block_{block}" for block in range(12)),
        *(f"val/gram_block_{block}" for block in range(12)),
        *(f"val/loss_t{step}" for step in (125, 375, 625, 875)),
        *("loss/diffusion", "val/loss", "val/loss_wrong_reference", "grad_norm"),
        *("perf/samples_per_second", "perf/data_wait_percent", "perf/memory_resident_gb"),
    ]
)


def charts(view: dict) -> list[list[str]]:
    return [c["selectedMetricKeys"] for c in view["compareRunCharts"] if c["type"] == "LINE"]


def test_charts_show_what_the_runs_have() -> None:
    found = charts(build_view(METRICS))
    assert ["val/loss", "val/loss_wrong_reference"] in found
    assert ["val/loss_t125", "val/loss_t375", "val/loss_t625", "val/loss_t875"] in found
    assert [name for name in METRICS if name.startswith("loss/gram")] in found
    shown = [name for chart in found for name in chart]
    assert sorted(shown) == METRICS
    assert charts(build_view(["loss/diffusion"])) == [["loss/diffusion"]]


def test_every_chart_is_in_a_section_and_has_a_name_of_its_own() -> None:
    view = build_view(METRICS)
    sections = [section["uuid"] for section in view["compareRunSections"]]
    assert {chart["metricSectionId"] for chart in view["compareRunCharts"]} <= set(sections)
    names = [chart["uuid"] for chart in view["compareRunCharts"]] + sections
    assert len(names) == len(set(names))


def test_a_view_is_read_as_it_was_written_and_fits_into_a_tag() -> None:
    value = encode_view(build_view(METRICS))
    assert decode_view(value) == build_view(METRICS)
    assert len(value) < 5000  # MLflow's limit


def test_the_installed_page_knows_what_the_view_says() -> None:
    """Another MLflow may keep its views elsewhere; then this view must change, too."""
    folder = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    page = "".join(path.read_text(errors="ignore") for path in folder.glob("*.js"))
    assert "mlflow.sharedViewState." in page
    assert "viewStateShareKey" in page
    assert "deflate;" in page
    view = build_view(METRICS)
    chart = {key for chart in view["compareRunCharts"] for key in chart}
    section = {key for section in view["compareRunSections"] for key in section}
    assert [key for key in {*view, *chart, *section} if key not in page] == []


def test_the_address_opens_the_view_where_stages_were_trained(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = MlflowTracker(uri, "mine")
    parent = tracker.start_run("run")
    pages = runs_pages(uri)
    assert pages["mine"] == "/#/experiments/1/runs?workflowType=machine_learning"
    child = tracker.start_run("run/a", parent_run_id=parent, tags={"nurie.stage": "backbone"})
    tracker.log_metrics(child, {"loss/diffusion": 1.0})
    for step in (50, 140):
        tracker.log_image(child, Image.new("RGB", (4, 4)), "samples", step=step)
    pages = runs_pages(uri)
    assert pages["mine"].endswith("&compareRunsMode=CHART&viewStateShareKey=nurie")
    assert "viewStateShareKey" not in pages["Default"]
    tags = tracker.client.get_experiment("1").tags
    view = decode_view(tags["mlflow.sharedViewState.nurie"])
    assert charts(view) == [["loss/diffusion"]]
    assert [chart["step"] for chart in view["compareRunCharts"] if "step" in chart] == [140]
    found = tracker.client.search_runs(["1"], view["searchFilter"], order_by=[view["orderByKey"]])
    assert [run.info.run_id for run in found] == [child]


@pytest.mark.parametrize("metrics", [[], ["loss/diffusion"]])
def test_without_curves_there_are_pictures_still(metrics: list[str]) -> None:
    images = [c for c in build_view(metrics)["compareRunCharts"] if c["type"] == "IMAGE"]
    assert [chart["imageKeys"] for chart in images] == [["samples"]]
