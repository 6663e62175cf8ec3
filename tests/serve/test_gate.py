"""Who comes in: keys, scopes, other sites, names of the server, headers that override limits."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from ray.serve._private import http_util
from ray.serve.config import HTTPOptions
from starlette.middleware import Middleware

from nurie.config.serve import LimitsConfig, ServeConfig
from nurie_serve import errors, gate
from nurie_serve.caller import ANYBODY, SCOPE_KEY
from nurie_serve.gate import MAX_WRONG_KEYS, guard
from nurie_serve.keys import Keyring, add_key, revoke_key
from nurie_serve.limits import SECURITY_HEADERS
from nurie_serve.proxy import middleware
from nurie_serve.run import ENVIRONMENT

PATHS = ("/", "/web/app.js", "/healthz", "/v1/options", "/v1/colorize", "/v1/keys", "/v1/keys/x")
BASE = "http://127.0.0.1:8000"


def guarded(config: ServeConfig) -> TestClient:
    """An application that tells who asked, with which headers."""
    app = FastAPI(openapi_url=None)
    guard(app, config, Keyring(config.keys_file) if config.keys_file else None)
    errors.install_handlers(app)

    async def tell(request: Request) -> dict:
        caller = request.scope[SCOPE_KEY]
        body = await request.body()
        return {"name": caller.name, "headers": dict(request.headers), "bytes": len(body)}

    for path in PATHS:
        app.add_api_route(path, tell, methods=["GET", "POST", "DELETE"])
    return TestClient(app, BASE)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def check(response, status: int, code: str) -> None:
    assert (response.status_code, response.json().get("code")) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert (
        SECURITY_HEADERS.items()
        <= {name: response.headers.get(name) for name in SECURITY_HEADERS}.items()
    )


def test_scopes(file: Path) -> None:
    tokens = {scope: add_key(file, scope, scope) for scope in ("read", "colorize", "admin")}
    client = guarded(ServeConfig(keys_file=file))
    allowed = {
        scope: [
            (method, path)
            for method, path in [
                ("GET", "/v1/options"),
                ("POST", "/v1/colorize"),
                ("DELETE", "/v1/colorize"),
                ("GET", "/v1/keys"),
                ("GET", "/v1/keys/x"),
            ]
            if client.request(method, path, headers=bearer(token)).status_code == 200
        ]
        for scope, token in tokens.items()
    }
    assert {scope: len(found) for scope, found in allowed.items()} == {
        "read": 1,
        "colorize": 3,
        "admin": 5,
    }
    refused = client.post("/v1/colorize", headers=bearer(tokens["read"]))
    check(refused, 403, "scope_missing")
    assert 'scope="colorize"' in refused.headers["www-authenticate"]
    assert client.get("/v1/options", headers=bearer(tokens["read"])).json()["name"] == "read"


def test_the_page_and_health_need_no_key(file: Path) -> None:
    add_key(file, "studio")
    client = guarded(ServeConfig(keys_file=file))
    for path in ("/", "/web/app.js", "/healthz"):
        assert client.get(path).json()["name"] == ANYBODY
    check(client.get("/v1/options"), 401, "key_missing")


@pytest.mark.parametrize(
    "path", ["/web/../v1/options", "//v1/options", "/v1/options/", "/V1/options", "/docs/../v1"]
)
def test_no_other_spelling_of_a_path_avoids_the_key(file: Path, path: str) -> None:
    add_key(file, "studio")
    client = guarded(ServeConfig(keys_file=file))
    assert client.get(path, follow_redirects=False).status_code in (401, 404)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "key_missing"),
        ({"Authorization": ""}, "key_missing"),
        ({"Authorization": "Bearer "}, "key_missing"),
        ({"Authorization": "Basic eDp5"}, "key_missing"),
        ({"Authorization": "Bearer wrong"}, "key_wrong"),
        ({"Authorization": b"Bearer \xff\xfe"}, "key_wrong"),
        ({"Authorization": "Bearer " + "x" * 20_000}, "key_wrong"),
    ],
)
def test_without_a_right_key(file: Path, headers: dict, code: str) -> None:
    add_key(file, "studio")
    response = guarded(ServeConfig(keys_file=file)).get("/v1/options", headers=headers)
    check(response, 401, code)
    assert response.headers["www-authenticate"].startswith('Bearer realm="nurie"')


def test_keys_that_ended_or_were_revoked(file: Path, monkeypatch) -> None:
    token = add_key(file, "guest", days=1)
    client = guarded(ServeConfig(keys_file=file))
    assert client.get("/v1/options", headers=bearer(token)).status_code == 200

    class Later(gate.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + timedelta(days=2)

    monkeypatch.setattr(gate, "datetime", Later)
    check(client.get("/v1/options", headers=bearer(token)), 401, "key_expired")
    monkeypatch.undo()
    revoke_key(file, "guest")
    check(client.get("/v1/options", headers=bearer(token)), 401, "key_wrong")


@pytest.mark.parametrize("name", ["key", "api_key", "API_KEY", "token", "access_token"])
@pytest.mark.parametrize("with_keys", [True, False])
def test_a_key_in_the_address(file: Path, name: str, with_keys: bool) -> None:
    token = add_key(file, "studio")
    client = guarded(ServeConfig(keys_file=file if with_keys else None))
    check(client.get(f"/v1/options?{name}={token}"), 400, "key_in_address")


def test_a_thousand_wrong_keys(file: Path) -> None:
    token = add_key(file, "studio")
    client = guarded(ServeConfig(keys_file=file))
    forged = {"X-Forwarded-For": "10.0.0.1"}
    for number in range(1000):
        headers = bearer(f"nurie_{number}") | (forged if number > 500 else {})
        response = client.get("/v1/options", headers=headers)
        if number < MAX_WRONG_KEYS:
            check(response, 401, "key_wrong")
        else:
            check(response, 429, "too_many_wrong_keys")
            assert int(response.headers["retry-after"]) > 0
    # Whoever has a key is not locked out by somebody else's guesses.
    assert client.get("/v1/options", headers=bearer(token)).status_code == 200


def test_wrong_keys_are_forgotten_in_time(monkeypatch) -> None:
    attempts, now = gate.WrongKeys(), [0.0]
    monkeypatch.setattr(gate.time, "monotonic", lambda: now[0])
    assert [attempts.too_many("a") for _ in range(MAX_WRONG_KEYS + 1)][-1]
    assert not attempts.too_many("b")
    now[0] = gate.WRONG_KEYS_PERIOD_S + 1
    assert not attempts.too_many("a")
    monkeypatch.setattr(gate, "_MAX_ADDRESSES", 5)
    for number in range(100):
        attempts.too_many(str(number))
    assert len(attempts._by_address) <= 6


def test_a_keys_own_limit_of_bodies(file: Path) -> None:
    token = add_key(file, "guest", limits={"max_body_bytes": 2048})
    config = ServeConfig(keys_file=file, limits=LimitsConfig(max_body_bytes=4096))
    client = guarded(config)

    def body():
        yield from [b"x" * 1000] * 3

    for content in (b"x" * 3000, body()):
        response = client.post("/v1/colorize", content=content, headers=bearer(token))
        check(response, 413, "body_too_large")
    done = client.post("/v1/colorize", content=b"x" * 2000, headers=bearer(token))
    assert done.json()["bytes"] == 2000


def test_without_keys_nobody_administers() -> None:
    client = guarded(ServeConfig())
    assert client.post("/v1/colorize").json()["name"] == ANYBODY
    check(client.get("/v1/keys"), 403, "no_keys")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil", "", "[", "x@127.0.0.1@y"]
)
def test_another_name_than_the_servers(host: str) -> None:
    client = guarded(ServeConfig())
    check(client.get("/v1/options", headers={"Host": host}), 421, "wrong_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_the_servers_own_names(host: str) -> None:
    assert guarded(ServeConfig()).get("/", headers={"Host": host}).status_code == 200


def test_any_name_where_keys_protect(file: Path) -> None:
    token = add_key(file, "studio")
    client = guarded(ServeConfig(keys_file=file, host="0.0.0.0"))
    headers = bearer(token) | {"Host": "nurie.example"}
    assert client.get("/v1/options", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": BASE}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": BASE}, 200),
        # A gateway may have changed Host; the browser knows better.
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://nurie.example"}, 200),
    ],
)
def test_pages_of_other_sites(headers: dict[str, str], status: int) -> None:
    response = guarded(ServeConfig()).post("/v1/colorize", headers=headers)
    assert response.status_code == status
    assert not any(name.startswith("access-control") for name in response.headers)


@pytest.mark.parametrize(
    "name",
    [
        "X-Request-Timeout-Seconds",
        "x-request-disconnect-disabled",
        "serve_multiplexed_model_id",
        "Serve-Multiplexed-Model-Id",
        "x_session_id",
    ],
)
def test_headers_that_override_limits_are_taken_away(name: str) -> None:
    headers = {name: "0", "X-Other": "1"}
    seen = guarded(ServeConfig()).get("/", headers=headers).json()["headers"]
    assert "x-other" in seen
    assert name.lower() not in seen


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([b"panel-17"], True),
        ([b"A.b_" + b"9" * 60], True),
        ([], False),
        ([b""], False),
        ([b"9" * 65], False),
        ([b"\xff\xfe"], False),
        ([b"a b"], False),
        ([b"<script>"], False),
        ([b"a", b"b"], False),
    ],
)
def test_names_of_requests(given: list[bytes], kept: bool) -> None:
    client = guarded(ServeConfig())
    headers = [("X-Request-Id", value) for value in given]
    good = client.get("/", headers=headers)
    refused = client.get("/v1/options?key=1", headers=headers)
    for response, seen in (
        (good, good.json()["headers"]["x-request-id"]),
        (refused, refused.json()["request_id"]),
    ):
        assert response.headers.get_list("x-request-id") == [seen]
        assert (given == [seen.encode()]) == kept
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", seen)


def test_headers_that_are_too_long() -> None:
    client = guarded(ServeConfig())
    assert client.get("/", headers={"X-A": "a" * 30_000}).status_code == 200
    for headers in ({"X-A": "a" * 33_000}, {f"X-{n}": "a" * 300 for n in range(120)}):
        check(client.get("/", headers=headers), 431, "headers_too_large")


def test_ray_serve_takes_the_middleware(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
    # Proxies read it when they start.
    monkeypatch.setattr(http_util, name, ENVIRONMENT[name])
    options = http_util.configure_http_middlewares(HTTPOptions())
    names = [each.cls.__name__ for each in options.middlewares]
    assert names == [
        "HeaderLimit",
        "LimitBody",
        "HideRoutes",
        "StripOverrides",
        "RequestId",
        "DropSlowReaders",
    ]


def test_a_proxy_does_the_same_and_hides_its_routes() -> None:
    assert all(isinstance(each, Middleware) for each in middleware())
    app = FastAPI()
    app.add_api_route("/-/routes", lambda: {"/": "nurie"})
    app.add_api_route("/-/healthz", lambda: "success")

    async def headers(request: Request) -> dict:
        return dict(request.headers)

    app.add_api_route("/headers", headers)
    wrapped = app
    for each in middleware():
        wrapped = each.cls(wrapped, *each.args, **each.kwargs)
    client = TestClient(wrapped)
    assert client.get("/-/routes").status_code == 404
    assert client.get("/-/healthz").json() == "success"
    assert (
        "x-request-timeout-seconds"
        not in client.get("/headers", headers={"X-Request-Timeout-Seconds": "0"}).json()
    )
