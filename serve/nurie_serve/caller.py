"""Who asks: jobs and uploads belong to a caller, and nobody else sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request


@dataclass(frozen=True)
class Caller:
    """Somebody who sends requests.

    Args:
        name: What their jobs are kept under.
    """

    name: str


async def identify(request: Request) -> Caller:
    """The caller of a request. Without keys, everybody is the same caller."""
    return Caller("anybody")


WhoAsks = Annotated[Caller, Depends(identify)]
"""A parameter of a route: its caller."""
