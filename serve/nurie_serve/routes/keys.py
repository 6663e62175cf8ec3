"""``/v1/keys``: for the operator, whose keys have which limits and how much work in the queue."""

from __future__ import annotations

import asyncio
from datetime import datetime

from fastapi import APIRouter

from nurie.config.keys import ApiKey, KeyLimits, Scope
from nurie_serve.documents import Document
from nurie_serve.jobs.tables import QUEUED, RUNNING
from nurie_serve.keys import Keyring
from nurie_serve.routes.answers import problems
from nurie_serve.service import Service


class KeyDocument(Document):
    """One key, without anything that would let somebody use it."""

    name: str
    """Who has it."""
    scope: Scope
    """What it may do."""
    created_at: datetime
    """When it was made."""
    expires_at: datetime | None
    """When it ends; null: never."""
    limits: KeyLimits
    """What it may ask for; null: as much as the server allows."""
    queued: int
    """Its jobs that wait."""
    running: int
    """Its jobs that are being made."""


class KeysDocument(Document):
    """The keys of this server."""

    keys: list[KeyDocument]
    """In the order of the file."""


def router(service: Service, keyring: Keyring | None) -> APIRouter:
    """The route over a service; the gate lets keys of scope ``admin`` alone come here."""
    routes = APIRouter(tags=["administration"])

    @routes.get("/v1/keys", responses=problems(401, 403))
    async def get_keys() -> KeysDocument:
        """The keys, and what each has in the queue."""
        counts = await asyncio.to_thread(service.store.counts_by_owner)
        known = () if keyring is None else keyring.keys
        return KeysDocument(keys=[_document(key, counts.get(key.name, {})) for key in known])

    return routes


def _document(key: ApiKey, counts: dict[str, int]) -> KeyDocument:
    return KeyDocument(
        name=key.name,
        scope=key.scope,
        created_at=key.created_at,
        expires_at=key.expires_at,
        limits=key.limits,
        queued=counts.get(QUEUED, 0),
        running=counts.get(RUNNING, 0),
    )
