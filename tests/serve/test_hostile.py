"""Inputs made to hurt: bombs, strange names, other people's things; and pictures damaged at random.

What is missing here is beside the code it concerns: forms and controls in ``test_bad_inputs``, keys
and hosts in ``test_gate``, events in ``test_events``, decoders in ``test_decoding``, what only the
HTTP server sees in ``test_wire``.
"""

from __future__ import annotations

import collections
import io
import os
import re
import socket
import struct
import zlib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from nurie.inference.images import ImageError
from nurie_serve.decoding import DecoderPool
from tests.serve.mutations import mutated
from tests.serve.test_bad_inputs import PNG, bomb, check_problem
from tests.serve.test_jobs import ended, submit
from tests.unit.test_images import NOISE, encode, picture

MUTATIONS = int(os.environ.get("NURIE_MUTATIONS", "300"))


def with_chunk(kind: bytes, body: bytes) -> bytes:
    """A good PNG with one more chunk before its pixels."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    data = encode(NOISE)
    place = data.index(b"IDAT") - 4
    return data[:place] + chunk + data[place:]


BOMB = zlib.compress(b"\0" * 100_000_000, 1)
FRAMES = [Image.new("RGB", (32, 32), (n % 256, 0, 0)) for n in range(300)]
JPEG = encode(NOISE, "JPEG")

REFUSED = {
    "FITS": (b"SIMPLE  =                    T" + b" " * 2850, 415, "unsupported_image"),
    "GIF of 300 frames": (
        encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
        415,
        "unsupported_image",
    ),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], 422, "corrupt_image"),
    "0 x 0": (bomb(0, 0), 422, "corrupt_image"),
    "sides beyond 31 bits": (bomb(2**32 - 1, 2**32 - 1), 413, "too_many_pixels"),
    "text bomb": (with_chunk(b"zTXt", b"Comment\0\0" + BOMB), 422, "corrupt_image"),
    "international text bomb": (
        with_chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB),
        422,
        "corrupt_image",
    ),
    "colour profile bomb": (with_chunk(b"iCCP", b"icc\0\0" + BOMB), 422, "corrupt_image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_pictures(client: TestClient, handle, files: dict, name: str) -> None:
    data, status, code = REFUSED[name]
    response = client.post("/v1/jobs", files=files | {"sketch": data})
    check_problem(response, status, code, "sketch")
    assert handle.jobs == []


TAKEN = {
    "APNG of 300 frames": encode(FRAMES[0], save_all=True, append_images=FRAMES[1:]),
    "WebP of 300 frames": encode(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
    "polyglot": encode(NOISE) + b"PK\x03\x04" + b"\0" * 1000,
    "all white": encode(Image.new("RGB", (64, 64), "white")),
    "all black": encode(Image.new("RGB", (64, 64), "black")),
    "transparent": encode(Image.new("RGBA", (64, 64), (0, 0, 0, 0))),
    "CMYK": encode(picture().convert("CMYK"), "JPEG"),
    "sixteen bit": encode(Image.new("I;16", (64, 64), 40_000)),
}


@pytest.mark.parametrize("name", TAKEN)
def test_odd_pictures_that_are_taken(client: TestClient, files: dict, name: str) -> None:
    data = TAKEN[name]
    job = ended(client, submit(client, {"sketch": data, "reference": data}))
    assert job["status"] == "succeeded"


NAMES = (
    "../../x",
    "a\0b",
    "x" * 4096,
    "<img src=x onerror=alert(1)>",
    "a\r\nX-Evil: 1",
    "\u202egnp",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files(client: TestClient, config, name: str) -> None:
    parts = [("sketch", (name, PNG, "image/png")), ("reference", (name, PNG, "image/png"))]
    response = client.post("/v1/batches", files=parts)
    assert response.status_code == 202
    item = client.get(response.headers["location"]).json()["items"][0]
    assert len(item["sketch"]) <= 100
    assert response.headers["content-type"] == "application/json"
    assert "x-evil" not in response.headers
    kept = {file.name for file in Path(config.jobs.folder).rglob("*") if file.is_file()}
    ours = re.compile(r"upl_[0-9a-f]+\.arrow|lease[\w-]*\.ora|jobs\.db(-wal|-shm)?")
    assert {file for file in kept if not ours.fullmatch(file)} == set()
    assert not (Path(config.jobs.folder).parent / "x").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "../../w"),
        ("model", "models:/x@y;rm -rf /"),
        ("n", "1000000"),
        ("__class__", "x"),
    ],
)
def test_fields_that_there_are_not(client: TestClient, files: dict, field: str, value: str) -> None:
    response = client.post("/v1/jobs", files=files, data={field: value})
    check_problem(response, 422, "unknown_field", field)


def test_unknown_sampler_lists_those_there_are(client: TestClient, files: dict) -> None:
    response = client.post("/v1/jobs", files=files, data={"scheduler": "dpm"})
    detail = check_problem(response, 422, "out_of_range", "scheduler")["detail"]
    assert "one of default, dpmpp_2m" in detail


def test_seed_zero_is_a_seed(client: TestClient, files: dict) -> None:
    response = client.post("/v1/colorize", files=files, data={"seed": "0"})
    assert response.headers["x-seed"] == "0"


def test_long_addresses_in_text_fields(client: TestClient, files: dict) -> None:
    for size, statuses in ((100_000, (422,)), (2_000_000, (400, 413))):
        data = {"reference": "data:image/png;base64," + "A" * size}
        response = client.post("/v1/jobs", files={"sketch": files["sketch"]}, data=data)
        assert response.status_code in statuses
        assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "http://rebind.example/",
        "//127.0.0.1/x",
        "upl_" + "0" * 34,
    ],
)
@pytest.mark.parametrize("path", ["/v1/colorize", "/v1/jobs", "/v1/batches"])
def test_no_packet_leaves(
    client: TestClient, files: dict, address: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError(f"{address} was looked at")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    response = client.post(path, files={"sketch": files["sketch"]}, data={"reference": address})
    if path == "/v1/batches":
        assert response.json()["items"][0]["error"]["code"] in CODES_OF_ADDRESSES
    else:
        assert response.status_code in (404, 422)
        assert response.json()["code"] in CODES_OF_ADDRESSES


CODES_OF_ADDRESSES = {"urls_not_allowed", "not_a_file", "not_found"}

JOB_IDS = (
    "1",
    "..%2f..%2fetc",
    "%00",
    "%ff%fe",
    "job_" + "0" * 50_000,
    "'; DROP TABLE jobs;--",
    "*",
)


@pytest.mark.parametrize("job_id", JOB_IDS)
def test_ids_of_jobs(client: TestClient, job_id: str) -> None:
    for path in ("", "/events", "/images/0", "/cancel"):
        method = "POST" if path == "/cancel" else "GET"
        response = client.request(method, f"/v1/jobs/{job_id}{path}")
        check_problem(response, 404, "not_found")
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 404


def test_numbers_of_pictures(client: TestClient, files: dict) -> None:
    job = ended(client, submit(client, files))
    for number, status in (("-1", 404), ("1", 404), ("9" * 30, 404), ("x", 422)):
        path = f"/v1/jobs/{job['id']}/images/{number}"
        assert client.get(path).status_code == status, number


def test_cancelling_twice(client: TestClient, handle, files: dict) -> None:
    handle.painter.gate.clear()
    job = submit(client, files)
    answers = [client.post(f"/v1/jobs/{job['id']}/cancel") for _ in range(2)]
    handle.painter.gate.set()
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()


def test_two_lengths(client: TestClient) -> None:
    headers = [("Content-Length", "5"), ("Content-Length", "6")]
    response = client.post("/v1/jobs", content=b"123456", headers=headers)
    check_problem(response, 400, "bad_content_length")


def test_a_part_with_a_header_of_a_megabyte(client: TestClient) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="sketch"; filename="' + b"a" * 900_000
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    response = client.post("/v1/jobs", content=head + b'"\r\n\r\n\r\n--x--\r\n', headers=kind)
    assert 400 <= response.status_code < 500
    assert response.headers["content-type"] == "application/problem+json"


def test_damaged_pictures_are_never_the_servers_fault(
    client: TestClient, files: dict, decoders: DecoderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ``make fuzz``, which sets NURIE_MUTATIONS, a small part."""
    crashes = []
    real = decoders.decode

    def decode(*arguments: object) -> Image.Image:
        try:
            return real(*arguments)
        except ImageError as error:
            if error.code == "undecodable_image":
                crashes.append(arguments[0])
            raise

    monkeypatch.setattr(decoders, "decode", decode)
    codes: collections.Counter[str] = collections.Counter()
    for data in mutated(MUTATIONS):
        response = client.post("/v1/uploads", files={"image": ("x.png", io.BytesIO(data))})
        if response.status_code == 201:
            codes["taken"] += 1
            continue
        problem = response.json()
        assert response.status_code in (413, 415, 422), response.text
        # Repeated parts can make the whole request too large; no field is to blame for that.
        assert problem.get("field") == "image" or problem["code"] == "body_too_large"
        codes[problem["code"]] += 1
    print(dict(codes))
    assert codes["taken"] > 0.1 * MUTATIONS
    assert codes["corrupt_image"] > 0.1 * MUTATIONS
    assert crashes == []
    assert submit(client, files)
