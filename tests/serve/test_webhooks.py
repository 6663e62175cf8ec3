"""Webhooks: who is told when a job has ended, who may not be called, what a dead process loses."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from nurie.config.serve import JobsConfig, ServeConfig, WebhooksConfig
from nurie_serve import webhooks
from nurie_serve.errors import Problem
from nurie_serve.ingress import create_api
from nurie_serve.jobs.deliveries import BACK_OFF, DeliveryQueue
from nurie_serve.jobs.store import JobStore
from nurie_serve.jobs.work import WorkQueue
from tests.serve.conftest import UNLUCKY, Handle
from tests.serve.test_bad_inputs import check_problem
from tests.serve.test_jobs import ended, submit
from tests.serve.test_store import new_job
from tests.serve.waiting import eventually

SECRET = b"between us"


class Listener:
    """Somebody who is told; answers with the statuses in turn, then with 204."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.heard: list[SimpleNamespace] = []
        self.open = threading.Event()
        self.open.set()

    @contextmanager
    def listening(self) -> Iterator[str]:
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                heard = SimpleNamespace(path=self.path, headers=self.headers, body=body)
                listener.heard.append(heard)
                listener.open.wait(20)
                self.send_response(listener.statuses.pop(0) if listener.statuses else 204)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing on the screen."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        self.open.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def endpoint(config: ServeConfig, handle: Handle, **settings: Any) -> Iterator[TestClient]:
    settings = {"timeout_s": 5.0, "retry_after_s": 0.01} | settings
    config = config.model_copy(update={"webhooks": WebhooksConfig(**settings)})
    with TestClient(create_api(config, handle)) as client:
        yield client


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "_LOOK_EVERY_S", 0.02)


def told(client: TestClient, job: dict) -> dict:
    """The job's webhook once there is nothing more to do."""
    done = ended(client, job)

    def look() -> dict | None:
        found = client.get(f"/v1/jobs/{done['id']}").json()["webhook"]
        return found if found["due_at"] is None else None

    return eventually(look)


def test_every_end_is_told(config: ServeConfig, handle: Handle, files: dict, tmp_path) -> None:
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    listener = Listener()
    with (
        listener.listening() as host,
        endpoint(config, handle, hosts=(host,), secret_file=tmp_path / "secret") as client,
    ):
        url = f"http://{host}/hook?page=1"
        for seed, status in ((5, "succeeded"), (UNLUCKY, "failed")):
            job = submit(client, files, seed=str(seed), webhook=url)
            assert job["webhook"] == {"url": url, "tries": 0, "status": None, "due_at": None}
            assert told(client, job) == {"url": url, "tries": 1, "status": 204, "due_at": None}
            heard = listener.heard[-1]
            document = json.loads(heard.body)
            assert (document["id"], document["status"]) == (job["id"], status)
            assert (heard.path, heard.headers["Host"]) == ("/hook?page=1", host)
            digest = hmac.new(SECRET, heard.body, hashlib.sha256).hexdigest()
            assert heard.headers["X-Nurie-Signature"] == f"sha256={digest}"
        assert len(listener.heard) == 2
        assert ended(client, submit(client, files))["webhook"] is None


def test_tries_are_repeated_and_redirects_are_not_followed(
    config: ServeConfig, handle: Handle, files: dict
) -> None:
    listener = Listener(500, 302)
    with listener.listening() as host, endpoint(config, handle, hosts=(host,)) as client:
        found = told(client, submit(client, files, webhook=f"http://{host}/"))
        assert (found["tries"], found["status"]) == (3, 204)
        assert [heard.path for heard in listener.heard] == ["/"] * 3
        assert "X-Nurie-Signature" not in listener.heard[0].headers


def test_who_never_answers_is_given_up(config: ServeConfig, handle: Handle, files: dict) -> None:
    listener = Listener()
    listener.open.clear()
    with (
        listener.listening() as host,
        endpoint(config, handle, hosts=(host,), timeout_s=0.1, max_tries=2) as client,
    ):
        job = submit(client, files, webhook=f"http://{host}/")
        found = told(client, job)
        assert (found["tries"], found["status"]) == (2, None)
        assert client.get(f"/v1/jobs/{job['id']}").json()["status"] == "succeeded"


HOSTS = ("hooks.example", "hooks.example:8443", "*.team.example", "[::1]")
ALLOWED = (
    "https://hooks.example/x?y=1",
    "http://HOOKS.example:80/",
    "https://hooks.example:443",
    "https://hooks.example:8443/",
    "https://a.b.team.example/",
    "http://[::1]/",
)
REFUSED = (
    "ftp://hooks.example/",
    "file:///etc/passwd",
    "//hooks.example/",
    "hooks.example",
    "http://hooks.example:22/",
    "http://hooks.example:8443x/",
    "http://hooks.example:99999/",
    "http://team.example/",
    "http://notteam.example/",
    "http://hooks.example.evil/",
    "http://evil#hooks.example/",
    "http://hooks.example@evil/",
    "http://evil:x@hooks.example/",
    "http://hooks.example\\@evil/",
    "http://hooks.example/ x",
    "http://hooks.example/\r\nX-Evil: 1",
    "http://hooks.exampl\u0435/",
    "http://127.0.0.1:8000/v1/jobs",
    "http://169.254.169.254/",
    "http://[::1",
    "http://hooks.example/" + "x" * 2000,
)


def test_whom_requests_may_name() -> None:
    for url in ALLOWED:
        webhooks.check_address(url, HOSTS)
    for url in REFUSED:
        with pytest.raises(Problem) as caught:
            webhooks.check_address(url, HOSTS)
        assert (caught.value.code, caught.value.field) == ("webhook_not_allowed", "webhook"), url


def test_nobody_unless_the_operator_says_so(client: TestClient, handle, files: dict) -> None:
    for url in (*ALLOWED, *REFUSED):
        response = client.post("/v1/jobs", files=files, data={"webhook": url})
        check_problem(response, 422, "webhook_not_allowed", "webhook")
    two = [("webhook", (None, "http://a/"))] * 2 + list(files.items())
    check_problem(client.post("/v1/jobs", files=two), 422, "duplicate_field", "webhook")
    response = client.post("/v1/jobs", files={**files, "webhook": b"http://a/"})
    check_problem(response, 422, "out_of_range", "webhook")
    assert handle.jobs == []
    with pytest.raises(ValueError, match=r"without http://"):
        WebhooksConfig(hosts=("http://hooks.example",))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Connections that were made, without making them."""
    made: list[tuple] = []

    class Pool:
        def __init__(self, address: str, port: int, **tls: str) -> None:
            made.append((address, port, tls.get("server_hostname"), tls.get("assert_hostname")))

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def urlopen(self, method: str, path: str, body: bytes, headers: dict, **options) -> Any:
            assert (method, options["redirect"], options["retries"]) == ("POST", False, False)
            made[-1] += (headers["Host"],)
            return SimpleNamespace(status=200, close=lambda: None)

    monkeypatch.setattr(webhooks, "HTTPConnectionPool", Pool)
    monkeypatch.setattr(webhooks, "HTTPSConnectionPool", Pool)
    return made


def resolving_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    asked: list[str] = []

    def look_up(name: str, port: int, **_: object) -> list:
        asked.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", "fe80::1%eth0",
     "fd00::1", "::ffff:127.0.0.1"],
)  # fmt: skip
def test_patterns_do_not_reach_private_networks(
    calls: list, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    resolving_to(monkeypatch, "8.8.8.8", address)
    with pytest.raises(webhooks.NotAllowed, match="private address"):
        webhooks.post("http://a.team.example/", b"", {}, WebhooksConfig(hosts=HOSTS))
    assert calls == []
    # The operator has named this one.
    webhooks.post("http://hooks.example/", b"", {}, WebhooksConfig(hosts=HOSTS))
    assert calls == [("8.8.8.8", 80, None, None, "hooks.example")]


def test_names_are_resolved_once(calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolving_to(monkeypatch, "8.8.8.8")
    webhooks.post("https://a.team.example/", b"", {}, WebhooksConfig(hosts=HOSTS))
    assert calls == [("8.8.8.8", 443, "a.team.example", "a.team.example", "a.team.example")]
    assert asked == ["a.team.example"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    real, moved = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + moved[0])
    return lambda seconds: moved.__setitem__(0, moved[0] + seconds)


def test_killed_senders_lose_nothing(tmp_path: Path, clock: Callable[[float], None]) -> None:
    config = WebhooksConfig(hosts=("a",), max_tries=3, retry_after_s=10)
    store = JobStore(JobsConfig(folder=str(tmp_path)), 10)
    first, other = DeliveryQueue(store, config), DeliveryQueue(store, config)
    job_id = store.submit(new_job(store, webhook="http://a/")).job.id
    assert first.take(4) == [], "it has not ended"
    WorkQueue(store).take("lease", 1)
    assert store.cancel("me", job_id)
    (taken,) = first.take(4)
    assert (taken.job_id, taken.url, taken.attempt) == (job_id, "http://a/", 1)
    assert other.take(4) == [], "it is being sent"
    clock(60)
    (again,) = other.take(4)
    assert again.attempt == 2
    first.settle(taken, 200)
    other.settle(again, 503)
    assert other.take(4) == [], "the late word of the first does not count, nor is it time"
    clock(10 * BACK_OFF + 1)
    (last,) = first.take(4)
    assert last.attempt == 3
    clock(60)
    assert first.take(4) == [], "never more than three"
    found = store.get("me", job_id)
    assert found is not None
    assert (found.job.webhook_due, found.job.webhook_status) == (None, 503)
    store.close()
