"""Who asks: jobs and uploads belong to a caller, and nobody else sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from nurie.config.serve import LimitsConfig
from nurie.inference.controls import Control
from nurie_serve.schema import limited_controls

ANYBODY = "anybody"
SCOPE_KEY = "nurie.caller"
"""Where the gate leaves the caller in a request's scope."""


@dataclass(frozen=True)
class Caller:
    """Somebody who sends requests.

    Args:
        name: What their jobs are kept under: the name of their key.
        limits: What they may ask for.
        max_active: Most of their jobs that wait or run at once (None: as many as the queue has).
        traceparent: The trace that their request is part of, if any.
    """

    name: str
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    max_active: int | None = None
    traceparent: str | None = None

    @property
    def controls(self) -> tuple[Control, ...]:
        """The controls with the ranges that the caller may use."""
        return limited_controls(self.limits)


async def identify(request: Request) -> Caller:
    """The caller of a request, as the gate found. Without keys, everybody is the same caller."""
    return request.scope[SCOPE_KEY]


WhoAsks = Annotated[Caller, Depends(identify)]
"""A parameter of a route: its caller."""
