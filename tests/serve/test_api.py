"""The HTTP application over a small colorizer object: answers, headers, faults of a replica."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from PIL import Image
from ray.exceptions import ActorDiedError
from starlette.routing import Mount, Route

import nurie_serve
from nurie.config.serve import AutoscalingConfig, ServeConfig
from nurie.inference.controls import CONTROLS
from nurie_serve.app import _colorizer, build
from nurie_serve.colorizer import Colorizer
from nurie_serve.ingress import create_api
from nurie_serve.schema import SIDE_FIELDS
from tests.serve.conftest import INFO, UNLUCKY, Painter
from tests.serve.waiting import eventually

WEB = Path(nurie_serve.__file__).parent / "web"


def encode(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def test_answers_with_the_picture(client: TestClient, handle, files: dict) -> None:
    data = {"seed": "5", "guidance_scale": "3.5"}
    response = client.post("/v1/colorize", files=files, data=data)
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-seed"] == "5"
    assert response.headers["x-model"] == "test-model sha256:abababababab"
    assert Image.open(io.BytesIO(response.content)).size == (64, 64)
    (job,) = handle.jobs
    assert (job.seed, job.guidance_scale) == ([5], 3.5)
    assert (job.background, job.foreground_mask) == (None, None)


def test_defaults_are_the_table(client: TestClient, handle, files: dict) -> None:
    client.post("/v1/colorize", files=files)
    expected = {control.name: control.default for control in CONTROLS if control.name != "seed"}
    assert {name: getattr(handle.jobs[0], name) for name in expected} == expected


def test_params_object(client: TestClient, handle, files: dict) -> None:
    params = json.dumps({"seed": 9, "num_inference_steps": 3, "guidance_scale": 1})
    client.post("/v1/colorize", files=files, data={"params": params})
    assert handle.jobs[0].seed == [9]
    assert handle.jobs[0].num_inference_steps == 3


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def test_json_is_the_same_request_as_the_form(client: TestClient, handle, files: dict) -> None:
    body = {name: data_url(data) for name, data in files.items()}
    body |= {"seed": 9, "params": {"num_inference_steps": 3, "keep_size": False}}
    response = client.post("/v1/colorize", json=body)
    assert (response.status_code, response.headers["x-seed"]) == (200, "9")
    assert (handle.jobs[0].num_inference_steps, handle.jobs[0].keep_size) == (3, False)
    fields = {"seed": "9", "num_inference_steps": "3", "keep_size": "false", "preview_every": "2"}
    key = {"Idempotency-Key": "k"}
    job = client.post("/v1/jobs", json={**body, "preview_every": 2}, headers=key)
    again = client.post("/v1/jobs", files=files, data=fields, headers=key)
    assert job.json()["id"] == again.json()["id"]
    other = client.post("/v1/jobs", json=body, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


def test_json_with_uploads(client: TestClient, handle, files: dict) -> None:
    upload = client.post("/v1/uploads", files={"image": files["reference"]}).json()["upload_id"]
    body = {"sketch": data_url(files["sketch"]), "reference": upload, "seed": 1}
    assert client.post("/v1/colorize", json=body).status_code == 200
    assert handle.jobs[0].reference[0].size == (48, 64)


def test_seed_zero_is_a_seed(client: TestClient, handle, files: dict) -> None:
    response = client.post("/v1/colorize", files=files, data={"seed": "0"})
    assert response.headers["x-seed"] == "0"
    assert handle.jobs[0].seed == [0]


def test_left_out_seed_is_drawn_and_returned(client: TestClient, handle, files: dict) -> None:
    seeds = {client.post("/v1/colorize", files=files).headers["x-seed"] for _ in range(5)}
    assert seeds == {str(job.seed[0]) for job in handle.jobs}
    assert len(seeds) > 1


@pytest.mark.parametrize(
    "sketch",
    [
        encode(Image.new("RGB", (64, 64), "white")),
        encode(Image.new("RGB", (64, 64), "black")),
        encode(Image.new("RGBA", (64, 64), (0, 0, 0, 0))),
        encode(Image.new("L", (64, 64), 128)),
        encode(Image.new("CMYK", (64, 64)), "JPEG"),
        encode(Image.new("I;16", (64, 64), 40000)),
        encode(Image.new("RGB", (64, 64)).quantize(2)),
        encode(Image.new("RGB", (64, 64)), "WEBP"),
    ],
    ids=["white", "black", "clear", "grey", "CMYK", "16 bit", "palette", "WebP"],
)
def test_unusual_pictures(client: TestClient, handle, files: dict, sketch: bytes) -> None:
    files["sketch"] = sketch
    assert client.post("/v1/colorize", files=files).status_code == 200
    assert handle.jobs[0].sketch[0].mode in ("RGB", "RGBA")


def test_transparent_mask_is_background(client: TestClient, handle, files: dict) -> None:
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 32, 64))
    files["mask"] = encode(mask)
    client.post("/v1/colorize", files=files)
    assert [handle.jobs[0].foreground_mask[0].getpixel((x, 5)) for x in (5, 60)] == [255, 0]


def test_a_side_alone_may_not_make_the_other_too_large(client: TestClient, files: dict) -> None:
    files["sketch"] = encode(Image.new("RGB", (400, 40)))
    response = client.post("/v1/colorize", files=files, data={"height": "64"})
    assert (response.status_code, response.json()["field"]) == (422, "height")
    assert "at most 512" in response.json()["detail"]
    assert client.post("/v1/colorize", files=files, data={"width": "64"}).status_code == 200


def test_large_pictures_are_scaled_to_the_largest_side(
    client: TestClient, handle, files: dict
) -> None:
    files["sketch"] = encode(Image.new("RGB", (1000, 500)))
    files["mask"] = files["sketch"]
    client.post("/v1/colorize", files=files)
    (job,) = handle.jobs
    assert (job.sketch[0].size, job.foreground_mask[0].mode) == ((512, 256), "L")


def test_same_settings_batch_and_others_do_not(client: TestClient, handle, files: dict) -> None:
    handle.painter.gate.clear()
    first = {"seed": "1", "num_inference_steps": "2"}
    client.post("/v1/jobs", files=files, data=first)
    eventually(lambda: handle.jobs)
    for data in ({"seed": "2"}, {"seed": "3"}, {"seed": "1", "num_inference_steps": "3"}):
        client.post("/v1/jobs", files=files, data=data)
    client.post("/v1/jobs", files={**files, "mask": files["sketch"]}, data={"seed": "4"})
    handle.painter.gate.set()
    eventually(lambda: len(handle.jobs) == 4)
    assert [job.seed for job in handle.jobs] == [[1], [2, 3], [1], [4]]


def test_full_queue(client: TestClient, handle, files: dict) -> None:
    handle.painter.gate.clear()
    client.post("/v1/jobs", files=files)
    eventually(lambda: handle.jobs)
    accepted = [client.post("/v1/jobs", files=files).status_code for _ in range(8)]
    assert accepted == [202] * 8
    response = client.post("/v1/colorize", files=files)
    assert (response.status_code, response.json()["code"]) == (429, "queue_full")
    assert int(response.headers["retry-after"]) > 0
    handle.painter.gate.set()
    eventually(lambda: client.get("/v1/jobs", params={"status": "queued"}).json()["jobs"] == [])
    assert client.post("/v1/colorize", files=files).status_code == 200


def test_dead_replica_is_retried_with_the_same_seed(
    client: TestClient, handle, files: dict
) -> None:
    handle.faults = [ActorDiedError()]
    response = client.post("/v1/colorize", files=files)
    assert response.status_code == 200
    assert [str(job.seed[0]) for job in handle.jobs] == [response.headers["x-seed"]]
    assert client.get(f"/v1/jobs/{response.headers['x-job-id']}").json()["attempts"] == 2


def test_job_that_kills_its_replicas_fails(client: TestClient, handle, files: dict) -> None:
    handle.faults = [ActorDiedError()] * 3
    response = client.post("/v1/colorize", files=files)
    assert (response.status_code, response.json()["code"]) == (503, "worker_lost")
    assert "retry-after" in response.headers
    assert client.post("/v1/colorize", files=files).status_code == 200


@pytest.fixture
def over_when_it_runs(
    config: ServeConfig, handle, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Has the deadline of a request pass when its picture is being made, however late that is."""
    real, tasks = asyncio.timeout, []

    def timeout(seconds: float | None) -> asyncio.Timeout:
        if seconds != config.limits.deadline_s:
            return real(seconds)
        limit, loop = real(None), asyncio.get_running_loop()

        async def end() -> None:
            while not handle.jobs:
                await asyncio.sleep(0.01)
            limit.reschedule(loop.time())

        tasks.append(loop.create_task(end()))
        return limit

    monkeypatch.setattr(asyncio, "timeout", timeout)
    yield
    assert len(tasks) == 1


@pytest.mark.usefixtures("over_when_it_runs")
def test_deadline_cannot_be_switched_off(client: TestClient, handle, files: dict) -> None:
    handle.painter.gate.clear()
    headers = {"x-request-timeout-seconds": "0", "x-request-disconnect-disabled": "?1"}
    data = {"num_inference_steps": "9"}
    response = client.post("/v1/colorize", files=files, headers=headers, data=data)
    assert (response.status_code, response.json()["code"]) == (503, "deadline_exceeded")
    (job,) = client.get("/v1/jobs").json()["jobs"]
    eventually(lambda: client.get(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled")
    eventually(lambda: not handle.replica._pulse.keeper.wanted(job["id"]))
    handle.painter.gate.set()
    eventually(lambda: handle.replica._pulse.keeper is None)
    assert handle.painter.steps == 2, "the warm-up's and one of the job"


def test_unexpected_error_tells_nothing(client: TestClient, handle, files: dict) -> None:
    response = client.post("/v1/colorize", files=files, data={"seed": str(UNLUCKY)})
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert response.json()["request_id"] == response.headers["x-request-id"]


def test_memory_that_does_not_suffice(client: TestClient, handle, files: dict) -> None:
    handle.painter.error = MemoryError()
    response = client.post("/v1/colorize", files=files, data={"seed": str(UNLUCKY)})
    assert (response.status_code, response.json()["code"]) == (503, "out_of_memory")
    assert client.post("/v1/colorize", files=files).status_code == 200


def test_options_is_the_table_with_the_servers_limits(client: TestClient) -> None:
    answer = client.get("/v1/options").json()
    controls = {control["name"]: control for control in answer["controls"]}
    assert list(controls) == [control.name for control in CONTROLS]
    assert controls["width"]["maximum"] == 512
    assert controls["num_inference_steps"]["type"] == "int"
    # The model's own value, where it has one.
    assert controls["guidance_scale"]["default"] == 1.3
    assert controls["num_inference_steps"]["default"] is None
    assert all(control["help"] and control["allowed"] for control in controls.values())
    assert {i["name"]: i["required"] for i in answer["inputs"]}["sketch"] is True


def test_an_ingress_that_leaves_answers_those_who_wait(config: ServeConfig) -> None:
    for deadline_s in (20.0, 300.0):
        limits = config.limits.model_copy(update={"deadline_s": deadline_s})
        application = build(config.model_copy(update={"limits": limits}))
        ingress = application._bound_deployment
        assert ingress.name == "Ingress"
        assert ingress._deployment_config.graceful_shutdown_timeout_s > deadline_s


def test_models(client: TestClient) -> None:
    (model,) = client.get("/v1/models").json()["models"]
    assert (model["name"], model["digest"]) == ("test-model", "ab" * 32)


def test_health(client: TestClient, handle) -> None:
    assert client.get("/readyz").status_code == 200
    handle.replica.close()
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200
    assert client.get("/v1/options").status_code == 200, "the last model is still known"


def test_no_replica_yet(config: ServeConfig) -> None:
    with TestClient(create_api(config, None)) as client:
        for path in ("/readyz", "/v1/options", "/v1/models", "/v2/health/ready"):
            response = client.get(path)
            assert (response.status_code, response.json()["code"]) == (503, "replica_unavailable")


def test_scaled_to_zero_is_ready(config: ServeConfig, handle) -> None:
    handle.replica.close()
    autoscaling = AutoscalingConfig(min_replicas=0)
    with TestClient(
        create_api(config.model_copy(update={"autoscaling": autoscaling}), handle)
    ) as client:
        assert client.get("/readyz").status_code == 200
        assert len(client.get("/v1/models").json()["models"]) == 1


def test_both_models_of_a_rolling_update(client: TestClient, config: ServeConfig, handle) -> None:
    other = Colorizer(config, lambda _: (Painter(), replace(INFO, digest="cd" * 32)))
    digests = {model["digest"] for model in client.get("/v1/models").json()["models"]}
    other.close()
    assert digests == {"ab" * 32, "cd" * 32}


def test_examples_can_be_sent_back(client: TestClient, handle) -> None:
    examples = client.get("/v1/examples").json()["examples"]
    assert len(examples) >= 3
    for example in examples:
        files = {part: client.get(example[part]).content for part in ("sketch", "reference")}
        assert client.post("/v1/colorize", files=files).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/web/app.js", "/web/style.css", "/v1/options", "/no"]
)
def test_security_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_page_has_no_inline_code_and_no_foreign_origin() -> None:
    for page in WEB.glob("*.html"):
        text = page.read_text()
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text), page
    for file in WEB.iterdir():
        found = set(re.findall(r"https?://[^\s\"']+", file.read_text()))
        assert found <= {"http://www.w3.org/2000/svg"}, file


def test_page_labels_name_existing_elements() -> None:
    text = (WEB / "index.html").read_text()
    ids = re.findall(r'\sid="([^"]+)"', text + (WEB / "docs.html").read_text())
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'\s(?:for|aria-labelledby|aria-describedby)="([^"]+)"', text)) <= set(
        ids
    )
    scripts = "".join(file.read_text() for file in WEB.glob("*.js"))
    used = re.findall(r'(?:\$|getElementById)\("([\w-]+)"\)', scripts)
    assert used
    assert set(used) <= set(ids)


def test_openapi_equals_the_routes(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    described = {
        (path, method.upper()) for path, methods in document["paths"].items() for method in methods
    }
    hidden = {"/", "/docs", "/openapi.json"}
    routes = {
        (re.sub(":path}", "}", route.path), method)
        for route in all_routes(client.app.routes)
        for method in route.methods - {"HEAD"}
        if route.path not in hidden
    }
    assert described == routes
    assert len(described) > 25
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["description"], path
            for status, answer in operation["responses"].items():
                is_problem = "application/problem+json" in answer.get("content", {})
                assert is_problem == (status[0] in "45" and status != "4XX"), (path, status)


def all_routes(routes: list) -> list[APIRoute | Route]:
    """The routes, those of included routers too, without mounted files."""
    found = []
    for route in routes:
        if isinstance(route, APIRoute | Route):
            found.append(route)
        elif not isinstance(route, Mount):
            found += all_routes(getattr(route, "original_router", route).routes)
    return found


def test_openapi_describes_form_and_json(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for path in ("/v1/colorize", "/v1/jobs"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        assert set(content) == {"multipart/form-data", "application/json"}
        for schema in (each["schema"] for each in content.values()):
            assert schema["required"] == ["sketch", "reference"]
            assert {control.name for control in CONTROLS} < set(schema["properties"])
            assert {field.name for field in SIDE_FIELDS} < set(schema["properties"])
            assert schema["properties"]["width"]["maximum"] == 512


@pytest.mark.parametrize(("replicas", "seconds"), [(1, 0.05), (4, 0.2), (100, 0.5)])
def test_many_busy_replicas_are_looked_at_less_often(replicas: int, seconds: float) -> None:
    config = ServeConfig(autoscaling=AutoscalingConfig(max_replicas=replicas))
    router = _colorizer(config)._deployment_config.request_router_config
    assert router.max_backoff_s == pytest.approx(seconds)
