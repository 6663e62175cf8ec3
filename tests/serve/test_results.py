"""Finished pictures over HTTP: formats, layers, settings in and out of them, limits of a key."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from psd_tools import PSDImage

from nurie.config.serve import ServeConfig
from nurie.inference.formats import FORMATS
from nurie.inference.recipe import RecipeError, read_recipe
from nurie_serve.ingress import create_api
from nurie_serve.keys import add_key
from tests.serve.test_bad_inputs import check_problem
from tests.serve.test_jobs import ended, submit


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.int16)


@pytest.mark.parametrize("name", FORMATS)
def test_formats(client: TestClient, files: dict, name: str) -> None:
    image = ended(client, submit(client, files, seed="7"))["images"][0]
    response = client.get(f"{image['url']}?format={name}")
    assert response.status_code == 200
    assert response.headers["content-type"] == FORMATS[name].media_type
    assert response.headers["content-disposition"].endswith(f'-0.{name}"')
    assert read_recipe(response.content).seed == 7
    plain = client.get(f"{image['url']}?format={name}&metadata=0")
    with pytest.raises(RecipeError):
        read_recipe(plain.content)
    assert plain.headers["etag"] != response.headers["etag"]
    expected = pixels(client.get(image["url"]).content)
    for data in (response.content, plain.content):
        if name == "ora":
            data = zipfile.ZipFile(io.BytesIO(data)).read("mergedimage.png")
        assert np.abs(pixels(data) - expected).max() <= 2
    again = client.get(
        f"{image['url']}?format={name}", headers={"If-None-Match": response.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


def test_digest_is_of_the_png(client: TestClient, files: dict) -> None:
    image = ended(client, submit(client, files))["images"][0]
    data = client.get(f"{image['url']}?metadata=0").content
    assert hashlib.sha256(data).hexdigest() == image["sha256"]


def test_layers_over_http(client: TestClient, files: dict) -> None:
    headers = {"Accept": "image/vnd.adobe.photoshop"}
    response = client.post("/v1/colorize", files=files, headers=headers)
    assert response.headers["content-type"] == "image/vnd.adobe.photoshop"
    document = PSDImage.open(io.BytesIO(response.content))
    assert [layer.name for layer in document] == ["background", "colour", "line", "mask"]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("*/*", "image/png"),
        ("image/webp, image/png;q=0.5", "image/webp"),
        ("image/avif,image/*", "image/png"),
        ("IMAGE/JPEG", "image/jpeg"),
    ],
)
def test_accept(client: TestClient, files: dict, accept: str, expected: str) -> None:
    response = client.post("/v1/colorize", files=files, headers={"Accept": accept})
    assert response.headers["content-type"] == expected


def test_settings_of_a_result_make_it_again(client: TestClient, handle, files: dict) -> None:
    data = {"seed": "5", "guidance_scale": "3.5", "line_overlay": "0.25", "scheduler": "euler"}
    first = client.post("/v1/colorize", files=files, data=data)
    found = client.post("/v1/inspect", files={"image": first.content})
    assert found.status_code == 200
    recipe = found.json()
    assert (recipe["seed"], recipe["model"]) == (5, "test-model sha256:abababababab")
    again = {name: str(value) for name, value in recipe["controls"].items()}
    second = client.post("/v1/colorize", files=files, data=again | {"seed": "5"})
    assert second.content == first.content


@pytest.mark.parametrize(
    ("parts", "code", "field"),
    [
        ([], "missing_field", "image"),
        ([("image", b"x")] * 2, "duplicate_field", "image"),
        ([("image", b"x"), ("other", b"x")], "unknown_field", "other"),
        ([("image", b"no picture")], "no_settings", "image"),
        ([("image", b"")], "no_settings", "image"),
    ],
)
def test_inspect_refuses(client: TestClient, parts: list, code: str, field: str) -> None:
    if not parts:
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        response = client.post("/v1/inspect", content=b"--x--\r\n", headers=kind)
    else:
        response = client.post("/v1/inspect", files=parts)
    check_problem(response, 422, code, field)


def test_inspect_takes_no_address(client: TestClient) -> None:
    parts = {"image": (None, "http://169.254.169.254/")}
    check_problem(client.post("/v1/inspect", files=parts), 422, "not_a_file", "image")


LIMITS = {"max_pixels": 5000, "max_side": 256, "max_inference_steps": 5, "max_active": 2}


@pytest.fixture
def with_keys(config: ServeConfig, handle, tmp_path: Path) -> Iterator[dict[str, TestClient]]:
    """A client for each key."""
    file = tmp_path / "keys.yaml"
    keys = {
        "studio": add_key(file, "studio"),
        "guest": add_key(file, "guest", limits=LIMITS),
        "boss": add_key(file, "boss", "admin"),
    }
    app = create_api(config.model_copy(update={"keys_file": file}), handle)
    with TestClient(app) as first:
        first.headers["Authorization"] = f"Bearer {keys['studio']}"
        yield {"studio": first} | {
            name: TestClient(app, headers={"Authorization": f"Bearer {key}"})
            for name, key in keys.items()
            if name != "studio"
        }


def test_limits_of_a_key(with_keys: dict[str, TestClient], files: dict) -> None:
    guest = with_keys["guest"]
    options = {each["name"]: each for each in guest.get("/v1/options").json()["controls"]}
    assert options["num_inference_steps"]["maximum"] == 5
    assert options["width"]["maximum"] == 256
    large = files | {"reference": encoded(100, 100)}
    check_problem(guest.post("/v1/jobs", files=large), 413, "too_many_pixels", "reference")
    steps = guest.post("/v1/jobs", files=files, data={"num_inference_steps": "6"})
    check_problem(steps, 422, "out_of_range", "num_inference_steps")
    for data in ({"width": "512"}, {"params": '{"height": 288}'}):
        response = guest.post("/v1/jobs", files=files, data=data)
        check_problem(response, 422, "out_of_range", "width" if "width" in data else "height")
    assert with_keys["studio"].post("/v1/jobs", files=large).status_code == 202


def encoded(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_queue_of_a_key(with_keys: dict[str, TestClient], handle, files: dict) -> None:
    handle.painter.gate.clear()
    guest, studio = with_keys["guest"], with_keys["studio"]
    jobs = [submit(guest, files) for _ in range(2)]
    response = guest.post("/v1/jobs", files=files)
    check_problem(response, 429, "key_queue_full")
    assert int(response.headers["retry-after"]) > 0
    assert studio.post("/v1/jobs", files=files).status_code == 202
    rows = {row["name"]: row for row in with_keys["boss"].get("/v1/keys").json()["keys"]}
    assert rows["guest"]["queued"] + rows["guest"]["running"] == 2
    assert rows["guest"]["limits"]["max_active"] == 2
    guest.post(f"/v1/jobs/{jobs[1]['id']}/cancel")
    assert guest.post("/v1/jobs", files=files).status_code == 202
    handle.painter.gate.set()


def test_jobs_belong_to_a_key(with_keys: dict[str, TestClient], files: dict) -> None:
    studio, guest, boss = with_keys["studio"], with_keys["guest"], with_keys["boss"]
    job = ended(studio, submit(studio, files))
    path = f"/v1/jobs/{job['id']}"
    for other in (guest, boss):
        check_problem(other.get(path), 404, "not_found")
        check_problem(other.get(f"{path}/events"), 404, "not_found")
        check_problem(other.get(job["images"][0]["url"]), 404, "not_found")
        check_problem(other.delete(path), 404, "not_found")
    assert studio.get(path).status_code == 200


def test_keys_are_for_administrators(with_keys: dict[str, TestClient]) -> None:
    check_problem(with_keys["studio"].get("/v1/keys"), 403, "scope_missing")
    listed = with_keys["boss"].get("/v1/keys")
    assert [row["name"] for row in listed.json()["keys"]] == ["studio", "guest", "boss"]
    assert "sha256" not in listed.text
