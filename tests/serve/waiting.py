"""Waiting for what happens in another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(happened: Callable[[], T], seconds: float = 20.0) -> T:
    """Return the first true value; fail if there is none in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := happened():
            return value
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")
