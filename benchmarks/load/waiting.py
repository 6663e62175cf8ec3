"""Waiting for what happens in another thread or process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Late(AssertionError):
    """Something did not happen in time."""


def eventually(happened: Callable[[], T | None], seconds: float = 20.0, every_s: float = 0.01) -> T:
    """Return the first true value.

    Raises:
        Late: If there is none in time.
    """
    pause = threading.Event()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := happened():
            return value
        pause.wait(every_s)
    raise Late(f"it did not happen in {seconds:g} seconds")
