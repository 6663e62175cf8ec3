"""The other doors: batches, uploads, models, OpenAI's form, KServe's health."""

from __future__ import annotations

import base64
import io
import json
import zipfile

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from nurie_serve.batches import file_name
from nurie_serve.documents import BatchItem
from tests.serve.conftest import PNG, UNLUCKY, encode, line_drawing
from tests.serve.test_events import parse
from tests.serve.test_jobs import check, ended, submit
from tests.serve.waiting import eventually

OTHER = encode(line_drawing(96, 64))


def send_batch(client: TestClient, parts: list, data: dict | None = None, **headers) -> dict:
    response = client.post("/v1/batches", files=parts, data=data or {}, headers=headers)
    assert response.status_code == 202, response.text
    return response.json()


def batch_ended(client: TestClient, batch: dict) -> dict:
    def look() -> dict | None:
        found = client.get(f"/v1/batches/{batch['id']}").json()
        return found if found["finished"] else None

    return eventually(look)


def picture(name: str, data: bytes = PNG) -> tuple[str, bytes]:
    return name, data


def test_every_sketch_with_every_reference_and_seed(client: TestClient, handle) -> None:
    parts = [
        ("sketch", picture("page 1.png")),
        ("sketch", picture("../2.png", OTHER)),
        ("reference", picture("red.png")),
        ("reference", picture("blue.png")),
    ]
    batch = send_batch(client, parts, {"seed": ["1", "2"], "num_inference_steps": "2"})
    done = batch_ended(client, batch)
    assert done["counts"] == {"succeeded": 8}
    rows = [(item["sketch"], item["reference"], item["seed"]) for item in done["items"]]
    names = ("page 1.png", "../2.png")
    assert rows == [(s, r, n) for s in names for r in ("red.png", "blue.png") for n in (1, 2)]
    assert {call.num_inference_steps for call in handle.jobs} == {2}
    assert len(handle.jobs) < 8, "equal ones run together"
    archive = client.get(done["archive"])
    assert archive.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(archive.content)) as file:
        assert file.testzip() is None
        assert file.namelist()[0] == "000-page_1-red-1.png"
        assert file.namelist()[4] == "004-2-red-1.png", "no path leaves the archive"
        assert Image.open(file.open("004-2-red-1.png")).size == (96, 64)
        assert json.loads(file.read("batch.json"))["id"] == batch["id"]


def test_bad_items_fail_alone(client: TestClient) -> None:
    parts = [
        ("sketch", picture("good.png")),
        ("sketch", picture("bad.png", b"no picture")),
        ("reference", picture("ref.png")),
    ]
    batch = batch_ended(client, send_batch(client, parts, {"seed": ["1", str(UNLUCKY)]}))
    assert batch["counts"] == {"succeeded": 1, "failed": 3}
    codes = [item["error"] and item["error"]["code"] for item in batch["items"]]
    assert codes == [None, "internal_error", "unsupported_image", "unsupported_image"]
    with zipfile.ZipFile(io.BytesIO(client.get(batch["archive"]).content)) as file:
        assert len(file.namelist()) == 2


def test_batch_keeps_its_promises(client: TestClient, handle) -> None:
    parts = [("sketch", picture("s.png")), ("reference", picture("r.png"))]
    first = send_batch(client, parts, {"seed": "1"}, **{"Idempotency-Key": "k"})
    again = send_batch(client, parts, {"seed": "1"}, **{"Idempotency-Key": "k"})
    assert first["id"] == again["id"]
    other = client.post("/v1/batches", files=parts, headers={"Idempotency-Key": "k"})
    check(other, 409, "idempotency_conflict")
    batch_ended(client, first)
    assert len(handle.jobs) == 1


def test_batch_waits_behind_single_jobs(client: TestClient, handle, files: dict) -> None:
    handle.painter.gate.clear()
    submit(client, files, seed="1")
    eventually(lambda: handle.jobs)
    parts = [("sketch", picture("s.png")), ("reference", picture("r.png"))]
    batch = send_batch(client, parts, {"seed": "2", "num_inference_steps": "2"})
    single = submit(client, files, seed="3")
    assert single["queue"]["position"] == 1
    handle.painter.gate.set()
    batch_ended(client, batch)
    assert [call.seed for call in handle.jobs] == [[1], [3], [2]]


def test_cancelled_and_deleted_items(client: TestClient, handle) -> None:
    handle.painter.gate.clear()
    parts = [("sketch", picture("s.png")), ("reference", picture("r.png"))]
    batch = send_batch(client, parts, {"seed": ["1", "2"]})
    client.delete(f"/v1/jobs/{batch['items'][1]['job']}")
    cancelled = client.post(f"/v1/batches/{batch['id']}/cancel").json()
    assert cancelled["counts"] == {"cancelled": 1, "deleted": 1}
    handle.painter.gate.set()


@pytest.mark.parametrize(
    ("parts", "data", "field", "code"),
    [
        ([("reference", PNG)], {}, "sketch", "missing_field"),
        ([("sketch", PNG)], {}, "reference", "missing_field"),
        ([("sketch", PNG), ("reference", PNG)], {"seed": "-1"}, "seed", "out_of_range"),
        ([("sketch", PNG), ("reference", PNG)], {"seed": ["1"] * 60 * 5}, None, "bad_request"),
        ([("sketch", PNG)] * 9 + [("reference", PNG)] * 30, {}, "seed", "out_of_range"),
        ([("sketch", PNG), ("reference", PNG)], {"steps": "1"}, "steps", "unknown_field"),
        ([("sketch", PNG), ("reference", PNG), ("mask", PNG)], {}, "mask", "unknown_field"),
        ([("sketch", PNG), ("reference", PNG)], {"seed": ["1"] * 9}, None, "queue_full"),
    ],
)
def test_bad_batches(client: TestClient, parts, data, field, code) -> None:
    response = client.post("/v1/batches", files=parts, data=data)
    assert response.json()["code"] == code
    assert response.json().get("field") == field
    assert client.get("/v1/jobs").json()["jobs"] == []


def test_names_in_archives_are_harmless() -> None:
    fields = {"status": "succeeded", "job": "j", "error": None, "url": None, "seed": 1}
    for sketch in ("../../x", "a\0b/c:d.png", "", "x" * 500, "塗り絵.png"):
        item = BatchItem(index=7, sketch=sketch, reference="<img>.png", **fields)
        name = file_name(item, "png")
        assert "/" not in name
        assert "\0" not in name
        assert name.startswith("007-")
        assert len(name) < 120
    assert "塗り絵" in name


def test_upload_is_sent_once(client: TestClient, handle, files: dict) -> None:
    upload = client.post("/v1/uploads", files={"image": files["reference"]})
    assert upload.status_code == 201
    document = upload.json()
    assert (document["width"], document["height"]) == (48, 64)
    data = {"reference": document["upload_id"], "seed": "1"}
    sketch = {"sketch": files["sketch"]}
    for _ in range(2):
        response = client.post("/v1/colorize", files=sketch, data=data)
        assert response.status_code == 200
    batch = send_batch(client, [("sketch", PNG)], {"reference": document["upload_id"]})
    assert batch_ended(client, batch)["counts"] == {"succeeded": 1}
    address = f"/v1/uploads/{document['upload_id']}"
    assert client.get(address).json() == document
    assert client.delete(address).status_code == 204
    check(client.get(address), 404, "not_found")
    check(client.post("/v1/colorize", files=sketch, data=data), 404, "not_found")


def test_bad_uploads(client: TestClient, files: dict) -> None:
    check(client.post("/v1/uploads", files={"image": b"text"}), 415, "unsupported_image")
    check(client.post("/v1/uploads", files={"other": PNG}), 422, "missing_field")
    two = [("image", PNG), ("image", PNG)]
    check(client.post("/v1/uploads", files=two), 422, "missing_field")
    missing = {"reference": "upl_" + "0" * 34}
    answer = client.post("/v1/colorize", files={"sketch": PNG}, data=missing)
    check(answer, 404, "not_found")


def test_models_and_queue(client: TestClient, files: dict) -> None:
    assert client.get("/v1/models/test-model").json()["digest"] == "ab" * 32
    check(client.get("/v1/models/models:/x@y;rm"), 404, "not_found")
    assert client.get("/v1/queue").json() == {
        "queued": 0, "running": 0, "max_queued": 8, "eta_s": None
    }  # fmt: skip
    ended(client, submit(client, files))
    assert client.get("/v1/queue").json()["eta_s"] is not None


def test_kserve(client: TestClient) -> None:
    for path in ("", "/health/live", "/health/ready", "/models/test-model/ready"):
        assert client.get(f"/v2{path}").status_code == 200
    metadata = client.get("/v2/models/test-model").json()
    assert (metadata["name"], metadata["versions"]) == ("test-model", ["ab" * 32])
    check(client.get("/v2/models/other/ready"), 404, "not_found")


def edit(client: TestClient, *images: bytes, **data):
    files = [("image[]", each) for each in images]
    return client.post("/v1/images/edits", files=files, data={"prompt": "colour it", **data})


def test_openai_edits(client: TestClient, handle) -> None:
    response = edit(client, OTHER, PNG, n="3", seed="5", model="gpt-image-1")
    assert response.status_code == 200
    pictures = [base64.b64decode(each["b64_json"]) for each in response.json()["data"]]
    assert [Image.open(io.BytesIO(each)).size for each in pictures] == [(96, 64)] * 3
    assert sorted(seed for job in handle.jobs for seed in job.seed) == [5, 6, 7]
    edit(client, OTHER, PNG, size="128x64")
    assert (handle.jobs[-1].width, handle.jobs[-1].height) == (128, 64)


def test_openai_stream(client: TestClient, handle) -> None:
    handle.painter.preview = lambda predicted, _: [Image.new("RGB", (32, 32))] * len(predicted)
    response = edit(client, PNG, PNG, stream="true", partial_images="2", num_inference_steps="3")
    kinds = [kind for kind, _, _ in parse(response.text)]
    assert kinds[-1] == "image_edit.completed"
    assert set(kinds[:-1]) <= {"image_edit.partial_image"}
    final = parse(response.text)[-1][1]
    assert Image.open(io.BytesIO(base64.b64decode(final["b64_json"]))).size == (64, 64)
    failed = parse(edit(client, PNG, PNG, stream="true", seed=str(UNLUCKY)).text)
    assert failed[-1][1]["error"]["code"] == "internal_error"


@pytest.mark.parametrize(
    ("images", "data", "status", "param"),
    [
        ([PNG], {}, 422, "image[]"),
        ([PNG, b"text"], {}, 415, "reference"),
        ([PNG, PNG], {"n": "11"}, 422, "n"),
        ([PNG, PNG], {"n": "2", "stream": "true"}, 422, "n"),
        ([PNG, PNG], {"size": "100x100"}, 422, "size"),
        ([PNG, PNG], {"output_format": "gif"}, 422, "output_format"),
        ([PNG, PNG], {"response_format": "url"}, 422, "response_format"),
        ([PNG, PNG], {"quality": "high"}, 422, "quality"),
        ([PNG, PNG], {"colour": "red"}, 422, "colour"),
    ],
)
def test_openai_errors(client: TestClient, images, data, status, param) -> None:
    response = edit(client, *images, **data)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"]
