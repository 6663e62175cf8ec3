"""Measuring a colorizer: how near to the truth, whose colours, whose shapes."""

from __future__ import annotations
