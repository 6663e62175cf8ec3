"""Bodies on their way through a proxy, which takes in whatever comes, as Ray Serve's does."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator

import psutil
import pytest

from nurie_serve import proxy
from nurie_serve.proxy import DropSlowReaders, LimitBody, middleware
from tests.serve.listening import listening
from tests.serve.waiting import eventually

MOST = 100_000
PART = 8_192


class Greedy:
    """Takes a body in as fast as it comes; answers when it is whole."""

    def __init__(self) -> None:
        self.taken = 0
        self.left = False

    async def __call__(self, scope: dict, receive, send) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left = True
                break
            self.taken += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 499 if self.left else 200})
        await send({"type": "http.response.body", "body": b"greedy", "more_body": False})


CHUNKED = ((b"transfer-encoding", b"chunked"),)


def ask(
    app: LimitBody, parts: list[bytes], pause_s: float = 0.0, headers=CHUNKED
) -> tuple[int, bytes]:
    """Send a body in parts; return status and body of the answer."""
    coming = iter(parts)
    answer: list[dict] = []

    async def receive() -> dict:
        await asyncio.sleep(pause_s)
        part = next(coming, None)
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    async def send(message: dict) -> None:
        answer.append(message)

    scope = {"type": "http", "headers": list(headers), "path": "/", "method": "POST"}
    asyncio.run(app(scope, receive, send))
    start, *bodies = answer
    assert [message.get("more_body", False) for message in bodies] == [True] * (len(bodies) - 1) + [
        False
    ]
    closing = (b"connection", b"close") in start.get("headers", ())
    assert closing == (len(bodies) == 2), "a visitor who is cut off has a moment to stop"
    return start["status"], b"".join(message["body"] for message in bodies)


@pytest.mark.parametrize(("size", "status"), [(MOST, 200), (MOST + 1, 413), (50 * MOST, 413)])
def test_a_body_without_a_length_is_counted_before_it_is_kept(size: int, status: int) -> None:
    greedy = Greedy()
    parts = [b"x" * PART] * (size // PART) + [b"x" * (size % PART)]
    found, body = ask(LimitBody(greedy, MOST), parts)
    assert found == status
    assert greedy.left == (status == 413)
    assert greedy.taken <= MOST
    if status == 413:
        assert json.loads(body)["code"] == "body_too_large"


def test_a_declared_length_is_refused_at_once() -> None:
    greedy = Greedy()
    headers = [(b"content-length", str(MOST + 1).encode())]
    assert ask(LimitBody(greedy, MOST), [b"x"], headers=headers)[0] == 413
    assert greedy.taken == 0


@pytest.mark.parametrize(("part", "status"), [(b"x", 408), (b"x" * 5_000, 200)])
def test_a_body_that_trickles_is_given_up(
    monkeypatch: pytest.MonkeyPatch, part: bytes, status: int
) -> None:
    # Each part has to come within the time of grace, or to bring its own time along.
    monkeypatch.setattr(proxy, "GRACE_S", 0.2)
    found, body = ask(LimitBody(Greedy(), MOST), [part] * 10, pause_s=0.05)
    assert found == status
    if status == 408:
        assert json.loads(body)["code"] == "body_too_slow"


def test_the_largest_body_is_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(proxy.MAX_BODY_VARIABLE, "12345")
    assert middleware()[1].kwargs == {"max_bytes": 12345}
    monkeypatch.delenv(proxy.MAX_BODY_VARIABLE)
    assert middleware()[1].kwargs == {"max_bytes": 32 * 2**20}


@pytest.fixture
def port() -> Iterator[int]:
    with listening(LimitBody(Greedy(), MOST)) as port:
        yield port


HEAD = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%s\r\n" % (PART, b"x" * PART)


def test_a_visitor_who_sends_without_end_is_cut_off(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "LINGER_S", 0.0)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(HEAD)
        with pytest.raises(ConnectionError):
            connection.sendall(CHUNK * 10_000)


def test_a_visitor_who_sends_too_much_reads_why(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(HEAD + CHUNK * 100 + b"0\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in answer


HUGE = 20 * 2**20
GRACE_S = 2.0


class Generous:
    """Answers with more than all buffers on the way take, or bit by bit."""

    def __init__(self) -> None:
        self.pieces_s: list[float] = []

    async def __call__(self, scope: dict, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200})
        for pause_s in self.pieces_s:
            await asyncio.sleep(pause_s)
            await send({"type": "http.response.body", "body": b"news", "more_body": True})
        await send({"type": "http.response.body", "body": b"x" * HUGE})


@pytest.fixture
def generous(monkeypatch: pytest.MonkeyPatch) -> Generous:
    monkeypatch.setattr(proxy, "GRACE_S", GRACE_S)
    return Generous()


def look_at(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    return connection


def num_visitors(port: int) -> int:
    """Connections that this process, which is server and visitor, holds as the server."""
    held = psutil.Process().net_connections("tcp")
    return sum(bool(each.raddr) and each.laddr.port == port for each in held)


def read(connection: socket.socket, pause_s: float = 0.0) -> int:
    taken = 0
    while part := connection.recv(2**17):
        taken += len(part)
        time.sleep(pause_s)
    return taken


def test_a_visitor_who_does_not_read_is_cut_off(generous: Generous) -> None:
    with listening(DropSlowReaders(generous)) as port, look_at(port) as connection:
        eventually(lambda: num_visitors(port))
        eventually(lambda: not num_visitors(port), 20 * GRACE_S)
        assert 0 < read(connection) < HUGE


def test_pauses_between_news_and_slow_lines_are_no_offence(generous: Generous) -> None:
    generous.pieces_s = [0.6 * GRACE_S, 1.2 * GRACE_S]
    with listening(DropSlowReaders(generous)) as port, look_at(port) as connection:
        # The whole answer takes longer than the grace.
        assert read(connection, GRACE_S / 100) > HUGE
