"""API keys: made, revoked, and recognised. The file holds digests, never a key."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import tempfile
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from pydantic import ValidationError

from nurie.config.keys import ApiKey, KeysConfig, Scope
from nurie.config.loader import ConfigError, load_config
from nurie.config.serve import LimitsConfig

logger = logging.getLogger(__name__)

PREFIX = "nurie_"
"""Begins every key, so that scanners find one that leaked."""
_KEY_BYTES = 32
_MOST_DAYS = 36_500


def read_keys(file: Path) -> KeysConfig:
    """Read a file of keys.

    Raises:
        ConfigError: If it is missing or wrong.
    """
    config = load_config(file)
    if not isinstance(config, KeysConfig):
        raise ConfigError(file, [("kind", "a file of keys has kind 'keys'; see nurie keys add")])
    return config


def add_key(
    file: Path,
    name: str,
    scope: Scope = "colorize",
    days: float | None = None,
    limits: Mapping[str, int | None] | None = None,
) -> str:
    """Make a key and write its digest down; the file is made if needed.

    Returns:
        The key: 256 random bits. It is nowhere else.

    Raises:
        ValueError: If the name is taken or a value is not allowed.
        ConfigError: If the file is wrong.
    """
    known = read_keys(file).keys if file.exists() else ()
    if any(key.name == name for key in known):
        raise ValueError(
            f"{name}: {file} has a key of this name; revoke it first, or choose another"
        )
    if days is not None and not 0 < days <= _MOST_DAYS:
        raise ValueError(f"days: {days:g} is not above 0 and up to {_MOST_DAYS}")
    text = PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    now = datetime.now(UTC).replace(microsecond=0)
    values = {
        "name": name,
        "sha256": digest(text),
        "scope": scope,
        "created_at": now,
        "expires_at": None if days is None else now + timedelta(days=days),
        "limits": dict(limits or {}),
    }
    try:
        made = ApiKey.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ValueError(
            f"{problem['loc'][-1]}: {problem['input']!r}: {problem['msg'].lower()}"
        ) from None
    _write(file, KeysConfig(keys=(*known, made)))
    return text


def revoke_key(file: Path, name: str) -> None:
    """Take a key out of the file; a running endpoint refuses it from the next request on.

    Raises:
        ValueError: If there is no such key.
        ConfigError: If the file is wrong.
    """
    keys = read_keys(file).keys
    left = tuple(key for key in keys if key.name != name)
    if len(left) == len(keys):
        names = ", ".join(key.name for key in keys) or "none"
        raise ValueError(f"{name}: {file} has no such key; there are: {names}")
    _write(file, KeysConfig(keys=left))


def digest(text: str) -> str:
    """What is kept of a key. A plain hash is enough: 256 random bits cannot be guessed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def limits_of(key: ApiKey, server: LimitsConfig) -> LimitsConfig:
    """What requests with a key may ask for: the smaller of its own limits and the server's."""
    own = {
        name: min(value, getattr(server, name))
        for name, value in key.limits
        if value is not None and name in LimitsConfig.model_fields
    }
    return server.model_copy(update=own)


class Keyring:
    """The keys of a file, as it is now: changes of the file count from the next request on.

    Args:
        file: The file.

    Raises:
        ConfigError: If the file is missing or wrong.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._seen = _version(file)
        self._keys = read_keys(file).keys

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        """The keys that there are now."""
        with self._lock:
            version = _version(self._file)
            if version != self._seen:
                self._seen = version
                self._reload()
            return self._keys

    def find(self, text: str) -> ApiKey | None:
        """The key, expired or not; takes the same time whether there is one or not."""
        given, found = digest(text), None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, given):
                found = key
        return found

    def _reload(self) -> None:
        try:
            self._keys = read_keys(self._file).keys
        except ConfigError as error:
            # Locking everybody out, or letting everybody in, would be worse.
            logger.error("the keys stay as they were: %s", error)


def _version(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _write(file: Path, config: KeysConfig) -> None:
    """Replace the file at once, readable by its owner alone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w") as opened:
            yaml.safe_dump(
                config.model_dump(mode="json", exclude_none=True), opened, sort_keys=False
            )
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
