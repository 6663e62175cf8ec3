"""The real Ray Serve application over loopback: pictures, a flood, a killed replica, deadlines."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
import torch
from PIL import Image

from benchmarks.load.application import nano_loader
from benchmarks.load.endpoint import Endpoint, count_faults, digest_of, drawings
from benchmarks.load.faults import kill, kill_replica, send_meanwhile
from benchmarks.load.server import COLORIZER, SERVE_PROCESSES, find_processes, free_port
from benchmarks.load.waiting import eventually
from nurie.checkpoints.manifest import write_manifest
from nurie.config.loader import load_config
from nurie.config.serve import AutoscalingConfig, JobsConfig, LimitsConfig, ServeConfig
from nurie.data.assets import find_assets
from nurie.inference.pipeline import ColorizationPipeline
from nurie.models.colorizer import ColorizationModel
from nurie_serve import metrics, run
from nurie_serve.app import bind

pytestmark = [pytest.mark.serve, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
STEP_S = 0.2
DEADLINE_S = 8.0
TOO_MANY_STEPS = 100


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in architecture with random weights, as a published folder."""
    config = load_config(CONFIGS / "model" / "nano.yaml")
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    pipeline = ColorizationPipeline.from_model(ColorizationModel(config), find_assets("nano"))
    pipeline.save_pretrained(folder)
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def config(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    return ServeConfig(
        model=str(model_folder),
        port=free_port(),
        autoscaling=AutoscalingConfig(min_replicas=1, max_replicas=1),
        max_batch_size=1,
        max_queued_requests=2,
        limits=LimitsConfig(deadline_s=DEADLINE_S, max_body_bytes=1_000_000),
        jobs=JobsConfig(folder=str(tmp_path_factory.mktemp("jobs"))),
    )


@pytest.fixture(scope="module")
def endpoint(ray_session: object, config: ServeConfig) -> Iterator[Endpoint]:
    yield Endpoint(run.start(config, bind(config, nano_loader(STEP_S))))
    run.stop()


@pytest.fixture
def address(endpoint: Endpoint) -> str:
    return endpoint.address


@pytest.fixture
def files() -> dict[str, bytes]:
    return drawings()


def test_colours_over_http(endpoint: Endpoint, files: dict) -> None:
    first, again, other = (
        endpoint.colorize(files, seed=seed, num_inference_steps=2, keep_size=False)
        for seed in (77, 77, 78)
    )
    assert (first.status_code, first.headers["x-seed"]) == (200, "77")
    image = Image.open(io.BytesIO(first.content))
    assert (image.mode, image.size) == ("RGB", (160, 96))
    assert first.content == again.content
    assert first.content != other.content
    own_size = endpoint.colorize(files, num_inference_steps=1)
    assert Image.open(io.BytesIO(own_size.content)).size == (96, 64)


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/healthz", "/readyz", "/v1/models"]
)
def test_other_endpoints(address: str, path: str) -> None:
    assert requests.get(address + path, timeout=30).status_code == 200


def test_proxies_hide_their_routes_and_take_overrides_away(address: str) -> None:
    assert requests.get(f"{address}/-/routes", timeout=60).status_code == 404
    assert requests.get(f"{address}/-/healthz", timeout=60).status_code == 200
    unreadable = {"x-request-id": b"\xff\xfe"}
    assert requests.get(f"{address}/healthz", headers=unreadable, timeout=60).status_code == 200
    named = {"x-request-id": "panel-17"}
    answer = requests.get(f"{address}/v1/jobs/none", headers=named, timeout=60)
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "panel-17"
    # Obeyed, it would end the request long before there is an answer.
    headers = {"x-request-timeout-seconds": "0.0001"}
    assert requests.get(f"{address}/readyz", headers=headers, timeout=60).status_code == 200


def test_problem_and_body_limit(endpoint: Endpoint, files: dict) -> None:
    response = endpoint.colorize({"sketch": files["sketch"]})
    assert (response.status_code, response.json()["field"]) == (422, "reference")
    response = endpoint.colorize({**files, "mask": b"\0" * 2_000_000})
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_flood_is_refused_with_retry_after(endpoint: Endpoint, files: dict) -> None:
    with ThreadPoolExecutor(12) as pool:
        calls = [pool.submit(endpoint.colorize, files, num_inference_steps=2) for _ in range(12)]
        responses = [call.result() for call in calls]
    assert {response.status_code for response in responses} == {200, 429}
    assert all("retry-after" in r.headers for r in responses if r.status_code == 429)
    assert endpoint.colorize(files, num_inference_steps=1).status_code == 200


def test_client_header_does_not_lift_the_deadline(endpoint: Endpoint, files: dict) -> None:
    headers = {"x-request-timeout-seconds": "0", "x-request-disconnect-disabled": "?1"}
    response = endpoint.colorize(files, headers, num_inference_steps=TOO_MANY_STEPS)
    assert (response.status_code, response.json()["code"]) == (503, "deadline_exceeded")
    assert "retry-after" in response.headers
    assert endpoint.colorize(files, num_inference_steps=1).status_code == 200


def test_visitor_who_leaves_frees_the_replica(endpoint: Endpoint, files: dict) -> None:
    with pytest.raises(requests.ReadTimeout):
        requests.post(
            f"{endpoint.address}/v1/colorize",
            files=files,
            data={"num_inference_steps": TOO_MANY_STEPS},
            timeout=1,
        )
    # Behind a picture that nobody waits for, this one would miss its deadline.
    assert endpoint.colorize(files, num_inference_steps=1).status_code == 200


def colorizers() -> list[psutil.Process]:
    return find_processes(psutil.Process(), COLORIZER)


def test_killed_replica_loses_nothing(endpoint: Endpoint, files: dict) -> None:
    (pid,) = endpoint.models()
    found = kill_replica(endpoint, files, colorizers)
    assert found.waiting.status_code in (200, 503), "503 if the new one was not there in time"
    assert found.queued["status"] == "succeeded"
    assert found.queued["model"].split()[0] != pid
    assert digest_of(found.queued) == digest_of(found.before) is not None
    if found.waiting.status_code == 200:
        sync = endpoint.job(found.waiting.headers["x-job-id"])
        assert sync["attempts"] == 2
        assert digest_of(sync) == digest_of(found.before)


def test_new_version_under_load_fails_no_request(
    endpoint: Endpoint, config: ServeConfig, files: dict
) -> None:
    (before,) = endpoint.models()

    def roll_out() -> None:
        limits = config.limits.model_copy(update={"max_side": 1024})
        changed = config.model_copy(update={"limits": limits})
        run.start(changed, bind(changed, nano_loader(STEP_S)))
        eventually(lambda: before not in endpoint.models(), 180, 0.2)

    answers = send_meanwhile(endpoint, files, roll_out)
    assert {answer.status_code for answer in answers} == {200}
    pids = [answer.headers["x-model"].split()[0] for answer in answers]
    assert (pids[0], len(set(pids))) == (before, 2)
    assert endpoint.get("/v1/options").json()["limits"]["max_side"] == 1024


def test_figures_of_the_dashboard_are_exported(
    endpoint: Endpoint, ray_session, files: dict
) -> None:
    texts = [path.read_text() for path in (ROOT / "infra" / "monitoring").iterdir()]
    wanted = set(re.findall(r"ray_nurie_\w+", "".join(texts)))
    assert len(wanted) > 8
    # What this application had no reason to count.
    metrics.REFERENCES.inc(1, {"result": "hit"})
    metrics.REPLICAS_LOST.inc()
    metrics.REQUESTS_REFUSED.inc(1, {"status": "429", "code": "queue_full"})
    port = ray_session.nodes()[0]["MetricsExportPort"]

    def missing() -> set[str]:
        text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
        return wanted - set(re.findall(r"^(ray_nurie_\w+)", text, re.M))

    # Ray exports every ten seconds.
    assert endpoint.colorize(files, num_inference_steps=1).status_code == 200
    eventually(lambda: not missing(), 90, 0.5)


def test_everything_killed_at_once_loses_nothing(
    endpoint: Endpoint, config: ServeConfig, files: dict
) -> None:
    jobs = [endpoint.submit(files, num_inference_steps=3, seed=seed) for seed in (5, 6)]
    processes = find_processes(psutil.Process(), *SERVE_PROCESSES)
    assert len(processes) >= 4
    kill(processes)
    eventually(endpoint.is_ready, 180, 0.2)
    done = [endpoint.ended(job["id"]) for job in jobs]
    assert [job["status"] for job in done] == ["succeeded", "succeeded"]
    assert endpoint.colorize(files, num_inference_steps=1).status_code == 200
    assert count_faults(config.jobs, endpoint.accepted, len(endpoint.asked) + 1) == (0, 0)
