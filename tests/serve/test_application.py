"""The real Ray Serve application over loopback: pictures, a flood, a killed replica, deadlines."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
import torch
from PIL import Image, ImageDraw

from nurie.checkpoints.manifest import write_manifest
from nurie.config.loader import load_config
from nurie.config.serve import AutoscalingConfig, JobsConfig, LimitsConfig, ServeConfig
from nurie.data.assets import find_assets
from nurie.inference.pipeline import ColorizationPipeline
from nurie.models.colorizer import ColorizationModel
from nurie_serve import metrics, run
from nurie_serve.app import bind
from tests.serve.waiting import eventually

pytestmark = pytest.mark.serve
ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
STEP_S = 0.2
DEADLINE_S = 8.0
TOO_MANY_STEPS = 100


def make_loader() -> Callable:
    """The real loader, with slower steps and the replica's process id as the model's name.

    Defined inside a function so that the replica gets it by value.
    """

    def load(config: ServeConfig):
        import os
        from dataclasses import replace

        from nurie_serve.model import load_model

        pipeline, info = load_model(config)

        def slow(callback_on_step_end=None, **inputs):
            def on_step_end(*args):
                time.sleep(STEP_S)
                return callback_on_step_end(*args)

            return pipeline(
                **inputs, callback_on_step_end=on_step_end if callback_on_step_end else None
            )

        return slow, replace(info, name=str(os.getpid()))

    return load


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
def address(ray_session: object, config: ServeConfig) -> Iterator[str]:
    yield run.start(config, bind(config, make_loader()))
    run.stop()


@pytest.fixture
def files() -> dict[str, bytes]:
    sketch = Image.new("RGB", (96, 64), "white")
    ImageDraw.Draw(sketch).ellipse((8, 8, 88, 56), outline="black", width=2)
    buffer = io.BytesIO()
    sketch.save(buffer, "PNG")
    return {"sketch": buffer.getvalue(), "reference": buffer.getvalue()}


def colorize(address: str, files: dict, headers: dict | None = None, **data) -> requests.Response:
    url = f"{address}/v1/colorize"
    return requests.post(url, files=files, data=data, headers=headers, timeout=60)


def test_colours_over_http(address: str, files: dict) -> None:
    first, again, other = (
        colorize(address, files, seed=seed, num_inference_steps=2, keep_size=False)
        for seed in (77, 77, 78)
    )
    assert (first.status_code, first.headers["x-seed"]) == (200, "77")
    image = Image.open(io.BytesIO(first.content))
    assert (image.mode, image.size) == ("RGB", (160, 96))
    assert first.content == again.content
    assert first.content != other.content
    own_size = colorize(address, files, num_inference_steps=1)
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
    # Obeyed, it would end the request long before there is an answer.
    headers = {"x-request-timeout-seconds": "0.0001"}
    assert requests.get(f"{address}/readyz", headers=headers, timeout=60).status_code == 200


def test_problem_and_body_limit(address: str, files: dict) -> None:
    response = colorize(address, {"sketch": files["sketch"]})
    assert (response.status_code, response.json()["field"]) == (422, "reference")
    response = colorize(address, {**files, "mask": b"\0" * 2_000_000})
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_flood_is_refused_with_retry_after(address: str, files: dict) -> None:
    with ThreadPoolExecutor(12) as pool:
        calls = [pool.submit(colorize, address, files, num_inference_steps=2) for _ in range(12)]
        responses = [call.result() for call in calls]
    assert {response.status_code for response in responses} == {200, 429}
    assert all("retry-after" in r.headers for r in responses if r.status_code == 429)
    assert colorize(address, files, num_inference_steps=1).status_code == 200


def test_client_header_does_not_lift_the_deadline(address: str, files: dict) -> None:
    headers = {"x-request-timeout-seconds": "0", "x-request-disconnect-disabled": "?1"}
    response = colorize(address, files, headers, num_inference_steps=TOO_MANY_STEPS)
    assert (response.status_code, response.json()["code"]) == (503, "deadline_exceeded")
    assert "retry-after" in response.headers
    assert colorize(address, files, num_inference_steps=1).status_code == 200


def test_visitor_who_leaves_frees_the_replica(address: str, files: dict) -> None:
    with pytest.raises(requests.ReadTimeout):
        requests.post(
            f"{address}/v1/colorize",
            files=files,
            data={"num_inference_steps": TOO_MANY_STEPS},
            timeout=1,
        )
    # Behind a picture that nobody waits for, this one would miss its deadline.
    assert colorize(address, files, num_inference_steps=1).status_code == 200


def replica_pid(address: str) -> int:
    """Of the replica that has made a picture just now."""
    models = requests.get(f"{address}/v1/models", timeout=60).json()["models"]
    return int(models[0]["name"])


def submit(address: str, files: dict, **data) -> dict:
    response = requests.post(f"{address}/v1/jobs", files=files, data=data, timeout=60)
    assert response.status_code == 202, response.text
    return response.json()


def get_job(address: str, job: dict) -> dict:
    return requests.get(f"{address}/v1/jobs/{job['id']}", timeout=60).json()


def ended(address: str, job: dict) -> dict:
    def look() -> dict | None:
        try:
            response = requests.get(f"{address}/v1/jobs/{job['id']}", timeout=60)
        except requests.RequestException:
            return None
        found = response.json() if response.status_code == 200 else {}
        return found if found.get("status") in ("succeeded", "failed") else None

    return eventually(look, 90)


def test_killed_replica_loses_nothing(address: str, files: dict) -> None:
    before = ended(address, submit(address, files, num_inference_steps=6, seed=5))
    pid = replica_pid(address)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(colorize, address, files, num_inference_steps=6, seed=5)
        eventually(lambda: requests.get(f"{address}/v1/jobs?status=running").json()["jobs"])
        queued = submit(address, files, num_inference_steps=6, seed=5)
        os.kill(pid, signal.SIGKILL)
        response = waiting.result()
    assert response.status_code in (200, 503), "503 if the new one was not there in time"
    job = ended(address, queued)
    assert job["status"] == "succeeded"
    assert job["model"].split()[0] != str(pid)
    assert job["images"][0]["sha256"] == before["images"][0]["sha256"]
    if response.status_code == 200:
        sync = get_job(address, {"id": response.headers["x-job-id"]})
        assert sync["attempts"] == 2
        assert sync["images"][0]["sha256"] == before["images"][0]["sha256"]


def test_new_version_under_load_fails_no_request(
    address: str, config: ServeConfig, files: dict
) -> None:
    stop = threading.Event()

    def keep_sending() -> list[requests.Response]:
        answers = []
        while not stop.is_set():
            answers.append(colorize(address, files, num_inference_steps=1))
        return answers

    before = replica_pid(address)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(keep_sending)
        limits = config.limits.model_copy(update={"max_side": 1024})
        run.start(config, bind(config.model_copy(update={"limits": limits}), make_loader()))
        eventually(lambda: replica_pid(address) != before, 90)
        eventually(lambda: len(requests.get(f"{address}/v1/models").json()["models"]) == 1)
        stop.set()
        answers = sending.result()
    assert {answer.status_code for answer in answers} == {200}
    pids = {answer.headers["x-model"].split()[0] for answer in answers}
    assert str(before) in pids
    options = requests.get(f"{address}/v1/options", timeout=60).json()
    assert options["limits"]["max_side"] == 1024


def test_figures_of_the_dashboard_are_exported(address: str, ray_session, files: dict) -> None:
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
    assert colorize(address, files, num_inference_steps=1).status_code == 200
    eventually(lambda: not missing(), 40)


def test_everything_killed_at_once_loses_nothing(address: str, files: dict) -> None:
    jobs = [submit(address, files, num_inference_steps=3, seed=seed) for seed in (5, 6)]
    names = ("ServeReplica:nurie", "ServeController", "ProxyActor")
    serve_processes = [
        process
        for process in psutil.Process().children(recursive=True)
        if any(name in " ".join(process.cmdline()) for name in names)
    ]
    assert len(serve_processes) >= 4
    for process in serve_processes:
        process.kill()

    def answers() -> bool:
        try:
            return requests.get(f"{address}/readyz", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    eventually(answers, 120)
    done = [ended(address, job) for job in jobs]
    assert [job["status"] for job in done] == ["succeeded", "succeeded"]
    assert colorize(address, files, num_inference_steps=1).status_code == 200
