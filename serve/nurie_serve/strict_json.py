"""JSON of strangers: one object, of few values, in which no name stands twice."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_VALUES = 1000
_MAX_NAME = 100


class RepeatedName(ValueError):
    """A name that stands twice in one object.

    Attributes:
        name: The name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"names {name} twice")
        self.name = name


def parse_object(data: str | bytes) -> dict[str, Any]:
    """Read one JSON object; NaN and Infinity become a NaN, which no control takes.

    Raises:
        RepeatedName: If a name stands twice in an object.
        ValueError: For all else; the message goes on after the name of the text.
    """
    try:
        text = data.decode() if isinstance(data, bytes) else data
        # Small text can mean many objects; a picture in base64 has none of these characters.
        if sum(map(text.count, "[{,")) > MAX_VALUES:
            raise ValueError
        found = json.loads(text, parse_constant=lambda _: math.nan, object_pairs_hook=_object)
    except RepeatedName:
        raise
    except (ValueError, RecursionError):
        raise ValueError(f"is not a JSON object of at most {MAX_VALUES} values") from None
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        name.encode()  # half a character cannot be written in an answer
        if len(name) > _MAX_NAME:
            raise ValueError
        if name in found:
            raise RepeatedName(name)
        found[name] = value
    return found
