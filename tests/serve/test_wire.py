"""Over a real HTTP server: requests that are no requests, and what the description promises."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from nurie.config.serve import JobsConfig, LimitsConfig, ServeConfig
from nurie_serve.ingress import create_api
from nurie_serve.proxy import middleware
from tests.serve.conftest import Handle
from tests.serve.listening import listening

EXAMPLES = 4
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The application behind the middleware of a proxy, in the HTTP server that Ray Serve uses."""
    config = ServeConfig(
        limits=LimitsConfig(max_body_bytes=1_000_000, max_pixels=1_000_000, deadline_s=5.0),
        jobs=JobsConfig(folder=str(tmp_path_factory.mktemp("store"))),
        max_queued_requests=10_000,
    )
    app = create_api(config, Handle(config))
    for each in middleware():
        app = each.cls(app, *each.args, **each.kwargs)
    with listening(app) as port:
        yield port


def send(port: int, data: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        try:
            connection.sendall(data)
            while part := connection.recv(65_536):
                found += part
        except ConnectionError:
            pass
    return found


CLOSE = b"Host: 127.0.0.1\r\nConnection: close\r\n"
POST = b"POST /v1/jobs HTTP/1.1\r\n" + CLOSE + b"Content-Type: multipart/form-data; boundary=x\r\n"
GET = b"GET /healthz HTTP/1.1\r\n" + CLOSE

# name: (request, statuses; none: the connection is closed)
REQUESTS = {
    "good": (GET + b"\r\n", {200}),
    "HTTP/1.0": (b"GET /healthz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n", {200}),
    "HTTP/1.0 without a host": (b"GET /healthz HTTP/1.0\r\n\r\n", {421}),
    "another host": (b"GET /healthz HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n", {421}),
    "absolute address": (
        b"GET http://evil/healthz HTTP/1.1\r\n" + CLOSE + b"\r\n",
        {200, 400, 404},
    ),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {400}),
    "header of 64 KB": (GET + b"X-A: " + b"a" * 65_536 + b"\r\n\r\n", {431}),
    "header of 1 MB": (GET + b"X-A: " + b"a" * 1_000_000 + b"\r\n\r\n", {431}),
    "path of 1 MB": (b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n" + CLOSE + b"\r\n", {400, 404}),
    "NUL in a header": (GET + b"X-A: a\0b\r\n\r\n", {400}),
    "folded header": (GET + b"X-A: a\r\n b: c\r\n\r\n", {200, 400}),
    "name of no header": (GET + b"X\xff: 1\r\n\r\n", {400}),
    "bytes in a request id": (GET + b"X-Request-Id: \xff\xfe\r\n\r\n", {200}),
    "two lengths": (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n123456", {400}),
    "negative length": (POST + b"Content-Length: -5\r\n\r\n123456", {400}),
    "length beyond 64 bits": (POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n1", {400, 413}),
    "length above the limit": (POST + b"Content-Length: 999999999\r\n\r\n1", {413}),
    "length and chunks": (
        POST
        + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/x HTTP/1.1",
        {400, 422},
    ),
    "way out of the page's files": (
        b"GET /web/../../../etc/passwd HTTP/1.1\r\n" + CLOSE + b"\r\n",
        {404},
    ),
    "routes of the proxy": (b"GET /-/routes HTTP/1.1\r\n" + CLOSE + b"\r\n", {404}),
    "CONNECT": (b"CONNECT a:80 HTTP/1.1\r\n" + CLOSE + b"\r\n", {400, 404, 405}),
    "TRACE": (b"TRACE /v1/options HTTP/1.1\r\n" + CLOSE + b"\r\n", {405}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_that_are_none(port: int, name: str) -> None:
    request, statuses = REQUESTS[name]
    answer = send(port, request)
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    assert int(answer[9:12]) in statuses, answer[:200]
    # One answer and no more: nothing of a body is taken for a request of its own.
    assert answer.count(b"HTTP/1.1 ") == 1
    assert requests.get(f"http://127.0.0.1:{port}/healthz", timeout=30).status_code == 200


def test_requests_one_after_the_other(port: int) -> None:
    answer = send(port, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + GET + b"\r\n")
    assert answer.count(b"HTTP/1.1 200") == 2


def test_the_description_holds(port: int) -> None:
    address = f"http://127.0.0.1:{port}"
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    tried = []
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path.endswith("/events"):
            continue  # it ends when its job does

        @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, phases=[Phase.generate])
        @given(case=operation.as_strategy())
        def try_out(case: schemathesis.Case) -> None:
            case.validate_response(case.call(base_url=address), checks=CHECKS)

        try_out()
        tried.append(operation.label)
    assert len(tried) > 25
