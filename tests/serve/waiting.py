"""Waiting for what happens in another thread or process."""

from benchmarks.load.waiting import eventually

__all__ = ["eventually"]
