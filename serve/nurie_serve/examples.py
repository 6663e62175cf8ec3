"""Ready pairs of pictures for the page: real anime and unseen built-in characters."""

from __future__ import annotations

import io
import logging
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

import numpy as np
from PIL import Image

from nurie.data.assets import find_assets
from nurie.data.examples import example_pairs
from nurie_serve.errors import Problem

logger = logging.getLogger(__name__)

NUM_CHARACTERS = 5
SEED = 7


class Example(NamedTuple):
    """One pair, both as PNG."""

    sketch: bytes
    reference: bytes


@lru_cache(maxsize=1)
def load_examples() -> dict[str, Example]:
    """All examples by name; none where the bundled pictures are not installed."""
    try:
        folder = find_assets("examples")
        pairs = example_pairs(NUM_CHARACTERS, SEED)
    except FileNotFoundError as error:
        logger.warning("the page has no examples: %s", error)
        return {}
    files = [folder / f"sylvie_{part}.png" for part in Example._fields]
    found = {"sylvie": Example(*(file.read_bytes() for file in files))}
    for number, pair in enumerate(pairs, 1):
        found[f"character-{number}"] = Example(_png(pair.sketch), _png(pair.reference))
    return found


def listing() -> list[dict[str, str]]:
    """Name and addresses of every example."""
    return [
        {"name": name, **{part: f"/v1/examples/{name}/{part}" for part in Example._fields}}
        for name in load_examples()
    ]


def find(name: str, picture: str) -> bytes:
    """The PNG of one picture of an example.

    Raises:
        Problem: 404 if there is none.
    """
    example = load_examples().get(name)
    if example is None or picture not in Example._fields:
        raise Problem(HTTPStatus.NOT_FOUND, "not_found", f"there is no example {name}/{picture}")
    return getattr(example, picture)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
