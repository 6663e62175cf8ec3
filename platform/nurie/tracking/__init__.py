"""Runs, metrics and models in MLflow, without ever making training wait for it."""

from __future__ import annotations
