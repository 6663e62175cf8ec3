"""Webhooks: a job that has ended is told to the address that its request named.

Whom the server calls is the operator's word: ``webhooks.hosts``. A name is resolved once and the
connection goes to that address; redirects are not followed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from urllib.parse import SplitResult, urlsplit

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

import nurie
from nurie.config.serve import ServeConfig, WebhooksConfig
from nurie_serve.errors import Problem
from nurie_serve.jobs.deliveries import Delivery, DeliveryQueue
from nurie_serve.jobs.store import JobStore
from nurie_serve.logs import log_job, logger
from nurie_serve.metrics import WEBHOOKS
from nurie_serve.schema import MAX_WEBHOOK, WEBHOOK
from nurie_serve.view import job_document

SIGNATURE = "X-Nurie-Signature"
_PORTS = {"http": 80, "https": 443}
_AT_ONCE = 4
_LOOK_EVERY_S = 1.0


class NotAllowed(Exception):
    """An address that must not be called."""


def check_address(url: str, hosts: Sequence[str]) -> None:
    """Check the address that a request names.

    Raises:
        Problem: 422 if the operator does not allow it.
    """
    try:
        _allow(url, hosts)
    except NotAllowed as error:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "webhook_not_allowed",
            f"{error}; webhooks.hosts of the server's configuration lists whom it may call",
            WEBHOOK,
        ) from None


class Webhooks:
    """Sends what is due, for ever; several processes may, each message is one's.

    Args:
        config: The application's settings.
        store: The job store.

    Raises:
        OSError: If the file of the secret cannot be read.
    """

    def __init__(self, config: ServeConfig, store: JobStore) -> None:
        self._config = config.webhooks
        self._keep_s = config.jobs.keep_s
        self._store = store
        self._queue = DeliveryQueue(store, config.webhooks)
        self._threads = ThreadPoolExecutor(_AT_ONCE, "webhook")
        file = config.webhooks.secret_file
        self._secret = None if file is None else file.read_bytes().strip()

    async def run(self) -> None:
        """Look for what is due, and send it."""
        while True:
            try:
                due = await asyncio.to_thread(self._queue.take, _AT_ONCE)
                await asyncio.gather(*(self._deliver(each) for each in due))
            except Exception:
                # What was not settled is due again.
                logger.exception("webhooks could not be sent")
            await asyncio.sleep(_LOOK_EVERY_S)

    def close(self) -> None:
        """Give up what is being sent: it is sent again when another looks."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _deliver(self, delivery: Delivery) -> None:
        snapshot = await asyncio.to_thread(self._store.get, delivery.owner, delivery.job_id)
        if snapshot is None:
            return
        body = job_document(snapshot, self._keep_s).model_dump_json().encode()
        loop = asyncio.get_running_loop()
        status = await loop.run_in_executor(self._threads, self._send, delivery, body)
        await asyncio.to_thread(self._queue.settle, delivery, status)

    def _send(self, delivery: Delivery, body: bytes) -> int | None:
        """The status of the answer; None if there was none."""
        headers = {"Content-Type": "application/json", "User-Agent": f"nurie/{nurie.__version__}"}
        if self._secret is not None:
            digest = hmac.new(self._secret, body, hashlib.sha256).hexdigest()
            headers[SIGNATURE] = f"sha256={digest}"
        status, reason = None, None
        try:
            status = post(delivery.url, body, headers, self._config)
        except (NotAllowed, HTTPError, OSError, ValueError) as error:
            reason = type(error).__name__
        result = "none" if status is None else f"{status // 100}xx"
        WEBHOOKS.inc(1, {"answer": result})
        log_job("webhook", delivery.job_id, attempt=delivery.attempt, status=status, reason=reason)
        return status


def post(url: str, body: bytes, headers: dict[str, str], config: WebhooksConfig) -> int:
    """Send one message and return the status of the answer, whose body is not read.

    Raises:
        NotAllowed: If the address must not be called, by its name or by what it resolves to.
        OSError: If the name cannot be resolved.
        urllib3.exceptions.HTTPError: If there is no answer in time.
    """
    parts, named = _allow(url, config.hosts)
    assert parts.hostname is not None
    port = parts.port or _PORTS[parts.scheme]
    address = _resolve(parts.hostname, port, named)
    if parts.scheme == "https":
        pool = HTTPSConnectionPool(
            address, port, server_hostname=parts.hostname, assert_hostname=parts.hostname
        )
    else:
        pool = HTTPConnectionPool(address, port)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with pool:
        answer = pool.urlopen(
            "POST",
            path,
            body,
            {**headers, "Host": parts.netloc},
            retries=False,
            redirect=False,
            timeout=config.timeout_s,
            preload_content=False,
        )
        answer.close()
    return answer.status


def _allow(url: str, hosts: Sequence[str]) -> tuple[SplitResult, bool]:
    """The parts of an allowed address, and whether its host is named itself, not by a pattern."""
    if not re.fullmatch(f"[!-~]{{1,{MAX_WEBHOOK}}}", url):
        raise NotAllowed(f"an address has at most {MAX_WEBHOOK} characters, none beyond ASCII")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise NotAllowed("this is no address") from None
    name = parts.netloc.lower()
    if parts.scheme not in _PORTS or not parts.hostname or "@" in name:
        raise NotAllowed("this is no http or https address without a login")
    if port == _PORTS[parts.scheme]:
        name = name.rpartition(":")[0]
    if name in hosts:
        return parts, True
    if any(name.endswith(host[1:]) for host in hosts if host.startswith("*.")):
        return parts, False
    raise NotAllowed(f"{name[:200]} is not allowed")


def _resolve(name: str, port: int, named: bool) -> str:
    """The numeric address to call; a pattern does not reach into private networks."""
    found = [info[4][0] for info in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)]
    for text in found if not named else []:
        address = ipaddress.ip_address(str(text).partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if not address.is_global or address.is_multicast:
            raise NotAllowed(f"{name} is at a private address")
    return str(found[0])
