"""The settings a picture was made with, carried in its file as XMP.

XMP is plain text between two markers, the same in PNG, WebP, JPEG, PSD and OpenRaster. It is found
by looking for the markers, so that reading the settings of an untrusted file decodes nothing.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

import nurie
from nurie.inference.controls import CONTROLS, ControlError, ControlValue, parse_controls

_BEGIN, _END = b"<?xpacket begin=", b"<?xpacket end="
_MAX_PACKET = 65_536
_FOUND = re.compile(r'nurie:recipe(?:="([^"]*)"|>([^<]*)<)')
_PACKET = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:nurie="urn:nurie:1"
 xmp:CreatorTool="nurie {version}" nurie:recipe="{recipe}"/>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


class RecipeError(ValueError):
    """A file without settings, or with settings that cannot be used.

    The message begins with a verb: the file's name stands before it.
    """


class Recipe(BaseModel):
    """How a picture was made; the same recipe, pictures and model give the same picture again."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: str = nurie.__version__
    """Version of nurie."""
    model: str
    """Name and digest of the model."""
    seed: int
    """Seed of the picture."""
    controls: dict[str, ControlValue]
    """Every control that had a value, the model's own defaults included."""

    @classmethod
    def of(cls, model: str, seed: int, controls: Mapping[str, Any]) -> Self:
        """Of one picture of a call; ``controls`` are those of its output."""
        given = {name: v for name, v in controls.items() if v is not None and name != "seed"}
        return cls(model=model, seed=seed, controls=given)

    @property
    def values(self) -> dict[str, ControlValue]:
        """The controls with the seed, as a request gives them."""
        return {**self.controls, "seed": self.seed}

    def to_xmp(self) -> bytes:
        """The XMP packet that holds the recipe."""
        text = html.escape(self.model_dump_json())
        return _PACKET.format(version=self.version, recipe=text).encode()


def model_label(name: str, digest: str) -> str:
    """What recipes and the server call a model.

    Args:
        name: Of its folder, or its ``models:/`` reference.
        digest: SHA-256 of its manifest.
    """
    return f"{name} sha256:{digest[:12]}"


def read_recipe(data: bytes) -> Recipe:
    """Find the recipe in a file that nurie wrote.

    Args:
        data: A PNG, WebP, JPEG, PSD or OpenRaster file, trusted or not.

    Raises:
        RecipeError: If there is none, or if it names unknown controls or values out of range.
    """
    start = data.find(_BEGIN)
    end = data.find(_END, start) if start >= 0 else -1
    packet = data[start:end].decode("utf-8", "replace") if 0 <= end - start < _MAX_PACKET else ""
    found = _FOUND.search(packet) if end >= 0 else None
    if found is None:
        raise RecipeError(
            "holds no settings of nurie; another program may have dropped them, or the picture was "
            "saved without"
        )
    try:
        recipe = Recipe.model_validate(json.loads(html.unescape(found[1] or found[2] or "")))
        parse_controls(recipe.values, CONTROLS)
    except (ValidationError, ValueError, RecursionError) as error:
        what = str(error) if isinstance(error, ControlError) else "not what nurie writes"
        raise RecipeError(f"holds settings that cannot be used: {what}") from None
    return recipe
