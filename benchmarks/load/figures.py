"""What was measured, against its bar; as a table and as one JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.table import Table

from nurie.tracking.origin import source_commit

_PACKAGES = ("ray", "fastapi", "starlette", "uvicorn", "sqlalchemy", "pillow", "torch")


@dataclass(frozen=True)
class Figure:
    """One number.

    Args:
        row: Load or fault that it belongs to, e.g. ``S1``.
        name: What was measured.
        value: The number; None where this machine cannot measure it.
        unit: Its unit.
        at_least: Smallest value that is accepted, if there is one.
        at_most: Largest value that is accepted, if there is one.
        note: How it was measured, or why it was not.
    """

    row: str
    name: str
    value: float | None
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the bar holds; None without a bar and for what was not measured."""
        if self.value is None or (self.at_least is None and self.at_most is None):
            return None
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    @property
    def bar(self) -> str:
        """The bar in words."""
        parts = [
            f"{sign} {limit:g}"
            for sign, limit in (("≥", self.at_least), ("≤", self.at_most))
            if limit is not None
        ]
        return ", ".join(parts)

    def document(self) -> dict[str, Any]:
        """For the JSON."""
        value = None if self.value is None else round(self.value, 4)
        return {**asdict(self), "value": value, "passed": self.passed}


def table(figures: Sequence[Figure]) -> Table:
    """One line per figure; what missed its bar is red, what was not measured says so."""
    words = {True: "yes", False: "NO", None: ""}
    found = Table("", "figure", "value", "unit", "bar", "holds")
    for figure in figures:
        value = "not measured" if figure.value is None else f"{figure.value:.4g}"
        style = "red" if figure.passed is False else None
        cells = (figure.row, figure.name, value, figure.unit, figure.bar, words[figure.passed])
        found.add_row(*cells, style=style)
    return found


def write(file: Path, figures: Sequence[Figure], seconds: float) -> None:
    """Write the JSON.

    Args:
        file: Where to.
        figures: What was measured.
        seconds: How long all of it took.
    """
    commit, _, changed = source_commit()
    document = {
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
        "commit": commit,
        "uncommitted_changes": changed,
        "machine": {
            "cores": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "processor": platform.processor() or platform.machine(),
            "system": platform.platform(),
            "load_average": os.getloadavg(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "figures": [figure.document() for figure in figures],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def p99(values: Sequence[float]) -> float:
    """The value that one of a hundred exceeds."""
    return float(np.percentile(values, 99))
