"""Evaluation as a Ray Data batch job."""

from __future__ import annotations
