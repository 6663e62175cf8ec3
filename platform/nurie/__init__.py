"""nurie: colours line sketches with the colours and style of a reference picture."""

from __future__ import annotations

__version__ = "0.1.0"
