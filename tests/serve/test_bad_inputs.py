"""Bad input is answered with a 4xx problem that names the field, and never reaches the model."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib

import pytest
from fastapi.testclient import TestClient
from PIL import Image


def encode(image: Image.Image, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    return buffer.getvalue()


PNG = encode(Image.linear_gradient("L"))


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


# name: (sketch, status, code)
SKETCHES = {
    "empty file": (b"", 422, "empty_image"),
    "text": (b"hello", 415, "unsupported_image"),
    "html": (b"<html><script>alert(1)</script>", 415, "unsupported_image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "unsupported_image"),
    "pdf": (b"%PDF-1.4", 415, "unsupported_image"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "unsupported_image"),
    "psd": (b"8BPS\0\1" + b"\0" * 40, 415, "unsupported_image"),
    "tiff": (encode(Image.new("RGB", (64, 64)), "TIFF"), 415, "unsupported_image"),
    "gif": (encode(Image.new("RGB", (64, 64)), "GIF"), 415, "unsupported_image"),
    "truncated": (PNG[: len(PNG) // 2], 422, "corrupt_image"),
    "169 megapixels": (bomb(13_000, 13_000), 413, "too_many_pixels"),
    "400 megapixels": (bomb(20_000, 20_000), 413, "too_many_pixels"),
    "thin": (bomb(1, 100_000), 422, "bad_dimensions"),
    "tiny": (encode(Image.new("RGB", (8, 8))), 422, "bad_dimensions"),
    "100 to 1": (encode(Image.new("RGB", (3200, 32))), 422, "bad_dimensions"),
}

# name: (form fields, field named in the answer, code)
FIELDS = {
    "steps negative": ({"num_inference_steps": "-1"}, "num_inference_steps", "out_of_range"),
    "steps zero": ({"num_inference_steps": "0"}, "num_inference_steps", "out_of_range"),
    "steps huge": ({"num_inference_steps": "1000000000"}, "num_inference_steps", "out_of_range"),
    "steps broken": ({"num_inference_steps": "1.5"}, "num_inference_steps", "out_of_range"),
    "guidance NaN": ({"guidance_scale": "nan"}, "guidance_scale", "out_of_range"),
    "guidance infinite": ({"guidance_scale": "inf"}, "guidance_scale", "out_of_range"),
    "guidance text": ({"guidance_scale": "<b>"}, "guidance_scale", "out_of_range"),
    "seed negative": ({"seed": "-2"}, "seed", "out_of_range"),
    "seed too large": ({"seed": str(2**64)}, "seed", "out_of_range"),
    "width odd": ({"width": "1000"}, "width", "out_of_range"),
    "width above the server's": ({"width": "1024"}, "width", "out_of_range"),
    "unknown": ({"sampler": "euler"}, "sampler", "unknown_field"),
    "misspelt": ({"guidence_scale": "2"}, "guidence_scale", "unknown_field"),
    "params text": ({"params": "hello"}, "params", "invalid_json"),
    "params list": ({"params": "[1]"}, "params", "invalid_json"),
    "params deep": ({"params": "[" * 100_000}, "params", "invalid_json"),
    "params string": (
        {"params": '{"num_inference_steps": "20"}'},
        "num_inference_steps",
        "out_of_range",
    ),
    "params null": (
        {"params": '{"num_inference_steps": null}'},
        "num_inference_steps",
        "out_of_range",
    ),
    "params NaN": ({"params": '{"guidance_scale": NaN}'}, "guidance_scale", "out_of_range"),
    "params infinite": ({"params": '{"guidance_scale": 1e999}'}, "guidance_scale", "out_of_range"),
    "params true": ({"params": '{"seed": true}'}, "seed", "out_of_range"),
    "params nested": ({"params": '{"seed": {"seed": 1}}'}, "seed", "out_of_range"),
    "params unknown": ({"params": '{"n": 9}'}, "n", "unknown_field"),
    "params with a name twice": ({"params": '{"seed": 1, "seed": 2}'}, "seed", "duplicate_field"),
    "params with half a character": ({"params": '{"\\ud800": 1}'}, "params", "invalid_json"),
    "params with too much": ({"params": "[" + "0," * 2000 + "0]"}, "params", "invalid_json"),
    "given twice": ({"params": '{"seed": 1}', "seed": "2"}, "seed", "duplicate_field"),
}


URL = "data:image/png;base64," + base64.b64encode(PNG).decode()

# name: (what replaces parts of a good body, status, field, code)
VALUES = {
    "no sketch": ({"sketch": ...}, 422, "sketch", "missing_field"),
    "sketch null": ({"sketch": None}, 422, "sketch", "not_a_file"),
    "sketch a list": ({"sketch": [URL]}, 422, "sketch", "not_a_file"),
    "sketch text": ({"sketch": "x"}, 422, "sketch", "not_a_file"),
    "address": ({"mask": "http://169.254.169.254/"}, 422, "mask", "urls_not_allowed"),
    "local file": ({"mask": "file:///etc/passwd"}, 422, "mask", "urls_not_allowed"),
    "no such upload": ({"mask": "upl_" + "0" * 34}, 404, None, "not_found"),
    "html": ({"mask": "data:text/html;base64,PGI+"}, 415, "mask", "unsupported_image"),
    "svg": ({"mask": "data:image/svg+xml;base64,PGI+"}, 415, "mask", "unsupported_image"),
    "not in base64": ({"mask": "data:image/png,%89PNG"}, 415, "mask", "unsupported_image"),
    "no data": ({"mask": "data:image/png;base64"}, 422, "mask", "empty_image"),
    "type lies": ({"mask": "data:image/png;base64,PGI+"}, 415, "mask", "unsupported_image"),
    "junk": ({"mask": "data:image/png;base64,iVBO Rw0K"}, 400, "mask", "invalid_base64"),
    "other letters": ({"mask": "data:image/png;base64,\u00e9"}, 400, "mask", "invalid_base64"),
    "half": ({"mask": "data:image/png;base64,iVBOR"}, 400, "mask", "invalid_base64"),
    "data after the end": ({"mask": URL + "===="}, 400, "mask", "invalid_base64"),
    "steps as text": ({"num_inference_steps": "2"}, 422, "num_inference_steps", "out_of_range"),
    "steps true": ({"num_inference_steps": True}, 422, "num_inference_steps", "out_of_range"),
    "steps null": ({"num_inference_steps": None}, 422, "num_inference_steps", "out_of_range"),
    "NaN": ({"guidance_scale": float("nan")}, 422, "guidance_scale", "out_of_range"),
    "infinite": ({"guidance_scale": float("inf")}, 422, "guidance_scale", "out_of_range"),
    "huge text": ({"scheduler": "x" * 500_000}, 422, "scheduler", "out_of_range"),
    "huge text in a list": ({"seed": ["x" * 500_000]}, 422, "seed", "out_of_range"),
    "huge text in params": ({"params": {"seed": "x" * 500_000}}, 422, "seed", "out_of_range"),
    "unknown": ({"sampler": 1}, 422, "sampler", "unknown_field"),
    "unknown object": ({"sampler": {"a": [1]}}, 422, "sampler", "unknown_field"),
    "params a list": ({"params": [1]}, 422, "params", "invalid_json"),
    "twice": ({"params": {"seed": 1}, "seed": 1}, 422, "seed", "duplicate_field"),
    "previews as text": ({"preview_every": "1"}, 422, "preview_every", "out_of_range"),
    "previews an object": ({"preview_every": {}}, 422, "preview_every", "out_of_range"),
}

BODIES = {
    "empty": ("", 400, None, "empty_body"),
    "text": ("hello", 400, None, "invalid_json"),
    "list": ("[1]", 400, None, "invalid_json"),
    "null": ("null", 400, None, "invalid_json"),
    "cut off": ('{"sketch": "', 400, None, "invalid_json"),
    "two hundred levels": ('{"seed": ' + "[" * 200 + "]" * 200 + "}", 422, "seed", "out_of_range"),
    "a hundred thousand levels": ("[" * 100_000, 400, None, "invalid_json"),
    "many values": ('{"seed": [' + "[]," * 100_000 + "1]}", 400, None, "invalid_json"),
    "long number": ('{"seed": ' + "9" * 100_000 + "}", 400, None, "invalid_json"),
    "long name": ('{"' + "a" * 100_000 + '": 1}', 400, None, "invalid_json"),
    "half a character": ('{"\\ud800": 1}', 400, None, "invalid_json"),
    "another encoding": ('{"seed": 1}'.encode("utf-16"), 400, None, "invalid_json"),
    "name twice": ('{"seed": 1, "seed": 1}', 422, "seed", "duplicate_field"),
}


def check_problem(response, status: int, code: str, field: str | None = None) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["status"], problem["code"], problem.get("field")) == (status, code, field)
    assert problem["detail"]
    return problem


@pytest.mark.parametrize("name", SKETCHES)
@pytest.mark.parametrize("field", ["sketch", "reference", "background", "mask"])
def test_pictures(client: TestClient, handle, files: dict, name: str, field: str) -> None:
    data, status, code = SKETCHES[name]
    # The declared type and name lie: only the content counts.
    files[field] = ("../../x\0<img onerror=1>.png", data, "image/png")
    check_problem(client.post("/v1/colorize", files=files), status, code, field)
    assert handle.jobs == []


@pytest.mark.parametrize("name", FIELDS)
def test_fields(client: TestClient, handle, files: dict, name: str) -> None:
    data, field, code = FIELDS[name]
    check_problem(client.post("/v1/colorize", files=files, data=data), 422, code, field)
    assert handle.jobs == []


def send_json(client: TestClient, path: str, content: str | bytes):
    return client.post(path, content=content, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("path", ["/v1/colorize", "/v1/jobs"])
def test_json_values(client: TestClient, handle, path: str) -> None:
    for name, (changes, status, field, code) in VALUES.items():
        body = {"sketch": URL, "reference": URL} | changes
        body = {key: value for key, value in body.items() if value is not ...}
        problem = check_problem(send_json(client, path, json.dumps(body)), status, code, field)
        assert len(problem["detail"]) < 2000, name
    assert handle.jobs == []


@pytest.mark.parametrize("name", BODIES)
def test_json_bodies(client: TestClient, handle, name: str) -> None:
    content, status, field, code = BODIES[name]
    check_problem(send_json(client, "/v1/jobs", content), status, code, field)
    assert handle.jobs == []


def test_json_body_that_is_too_large(client: TestClient) -> None:
    body = json.dumps({"sketch": "data:image/png;base64," + "A" * 1_000_000})
    check_problem(send_json(client, "/v1/jobs", body), 413, "body_too_large")


def test_range_is_named(client: TestClient, files: dict) -> None:
    response = client.post("/v1/colorize", files=files, data={"num_inference_steps": "0"})
    assert "a whole number from 1 to 100" in response.json()["detail"]


def test_unknown_field_lists_the_known_ones(client: TestClient, files: dict) -> None:
    detail = client.post("/v1/colorize", files=files, data={"guidence_scale": "2"}).json()["detail"]
    assert "did you mean guidance_scale?" in detail
    assert "num_inference_steps" in detail


@pytest.mark.parametrize("missing", ["sketch", "reference"])
def test_missing_picture(client: TestClient, files: dict, missing: str) -> None:
    del files[missing]
    files["mask"] = PNG
    check_problem(client.post("/v1/colorize", files=files), 422, "missing_field", missing)


def test_two_sketches(client: TestClient) -> None:
    parts = [("sketch", PNG), ("sketch", PNG), ("reference", PNG)]
    check_problem(client.post("/v1/colorize", files=parts), 422, "duplicate_field", "sketch")


@pytest.mark.parametrize(
    "address",
    ["http://169.254.169.254/", "file:///etc/passwd", "gopher://x", "data:image/png;base64,"],
)
def test_addresses_are_not_fetched(client: TestClient, files: dict, address: str) -> None:
    del files["reference"]
    response = client.post("/v1/colorize", files=files, data={"reference": address})
    check_problem(response, 422, "urls_not_allowed", "reference")


def test_control_as_a_file(client: TestClient, files: dict) -> None:
    files["seed"] = PNG
    check_problem(client.post("/v1/colorize", files=files), 422, "out_of_range", "seed")


def test_no_body(client: TestClient) -> None:
    check_problem(client.post("/v1/colorize"), 400, "empty_body")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (json.dumps({"sketch": "x"}), "application/ld+json"),
        ("a=b", "application/x-www-form-urlencoded"),
        ("x", "multipart/mixed"),
    ],
)
def test_other_body_types(client: TestClient, body: str, kind: str) -> None:
    response = client.post("/v1/colorize", content=body, headers={"Content-Type": kind})
    check_problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "kind",
    ["multipart/form-data", "multipart/form-data; boundary=x", "multipart/form-data; boundary="],
)
def test_broken_multipart(client: TestClient, kind: str) -> None:
    response = client.post("/v1/colorize", content=b"no parts", headers={"Content-Type": kind})
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"


def test_too_many_parts(client: TestClient, files: dict) -> None:
    data = {f"field{n}": "1" for n in range(10_000)}
    check_problem(client.post("/v1/colorize", files=files, data=data), 400, "bad_request")


def test_declared_length_is_refused_before_reading(client: TestClient, files: dict) -> None:
    def body():
        raise AssertionError("the body was read")
        yield b""

    headers = {"Content-Length": "9999999", "Content-Type": "multipart/form-data; boundary=x"}
    response = client.post("/v1/colorize", content=body(), headers=headers)
    check_problem(response, 413, "body_too_large")


def test_chunked_body_is_counted(client: TestClient) -> None:
    def body():
        yield b'--x\r\nContent-Disposition: form-data; name="sketch"; filename="a"\r\n\r\n'
        for _ in range(200):
            yield b"\0" * 10_000

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = client.post("/v1/colorize", content=body(), headers=headers)
    check_problem(response, 413, "body_too_large")


@pytest.mark.parametrize("length", ["-1", "1e3", "x"])
def test_bad_content_length(client: TestClient, length: str) -> None:
    response = client.post("/v1/colorize", content=b"x", headers={"Content-Length": length})
    check_problem(response, 400, "bad_content_length")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE"])
def test_wrong_method(client: TestClient, method: str) -> None:
    response = client.request(method, "/v1/options")
    check_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET"


@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/web/../ingress.py", "/web/%2e%2e/app.py", "/v1/examples/x/y"]
)
def test_unknown_path(client: TestClient, path: str) -> None:
    check_problem(client.get(path), 404, "not_found")


def test_foreign_origin_gets_no_permission(client: TestClient, files: dict) -> None:
    response = client.post("/v1/colorize", files=files, headers={"Origin": "https://evil.example"})
    assert not any(name.startswith("access-control") for name in response.headers)
