"""API keys of an endpoint (a file that ``nurie keys`` writes)."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Self, get_args

from pydantic import AwareDatetime, Field, model_validator

from nurie.config.base import ConfigModel

Scope = Literal["read", "colorize", "admin"]
"""``read``: options, models, one's own jobs and pictures. ``colorize``: that, and to submit, cancel
and delete. ``admin``: that, and to see the keys and what each has in the queue."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""Each includes those before it."""


class KeyLimits(ConfigModel):
    """What a key may ask for; the server's own limits hold as well, and alone where one is null."""

    max_active: int | None = Field(default=None, ge=1)
    """Most jobs of the key that wait or run at once."""
    max_body_bytes: int | None = Field(default=None, ge=1024)
    """Largest request body."""
    max_pixels: int | None = Field(default=None, ge=4096)
    """Largest input picture."""
    max_side: int | None = Field(default=None, ge=64)
    """Longest side of a result."""
    max_inference_steps: int | None = Field(default=None, ge=1)
    """Most denoising steps."""
    max_priority: int | None = Field(default=None, ge=0, le=10)
    """Highest priority of a job."""


class ApiKey(ConfigModel):
    """One key; the key itself is not kept."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    """Who has it; jobs belong to this name."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Digest of the key."""
    scope: Scope = "colorize"
    """What it may do."""
    created_at: AwareDatetime
    """When it was made."""
    expires_at: AwareDatetime | None = None
    """When it ends (null: never)."""
    limits: KeyLimits = KeyLimits()
    """What it may ask for."""

    def allows(self, scope: Scope) -> bool:
        """Whether it may do what needs this scope."""
        return SCOPES.index(scope) <= SCOPES.index(self.scope)

    def expired(self, now: datetime) -> bool:
        """Whether it has ended."""
        return self.expires_at is not None and self.expires_at <= now


class KeysConfig(ConfigModel):
    """The keys of an endpoint."""

    kind: Literal["keys"] = "keys"
    """Kind of this file."""
    keys: tuple[ApiKey, ...] = ()
    """The keys."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [key.name for key in self.keys]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"a name stands for one key only, given twice: {', '.join(twice)}")
        return self
