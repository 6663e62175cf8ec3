"""What travels between the ingress and the colorizer, and how the API describes itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nurie.config.serve import LimitsConfig
from nurie.inference.controls import CONTROLS, Control
from nurie.inference.recipe import model_label

IMAGE_INPUTS = {
    "sketch": "line sketch to colour (required)",
    "reference": "picture whose colours and style are used (required)",
    "background": "picture for the background",
    "mask": "foreground of the sketch: white is foreground",
}
REQUIRED_INPUTS = ("sketch", "reference")


@dataclass(frozen=True)
class ModelInfo:
    """The model behind a replica."""

    name: str
    """Folder name or registry reference."""
    digest: str
    """SHA-256 of the model folder's manifest."""
    device: str
    dtype: str
    components: list[str] = field(default_factory=list)
    """Parts of the model folder, e.g. ``foreground_encoder``."""
    defaults: dict[str, float] = field(default_factory=dict)
    """Controls whose default is the model's own."""

    @property
    def label(self) -> str:
        """Name and digest in one line."""
        return model_label(self.name, self.digest)


def limited_controls(limits: LimitsConfig) -> tuple[Control, ...]:
    """The controls with the ranges that this server allows."""
    caps = {
        "num_inference_steps": limits.max_inference_steps,
        "height": limits.max_side,
        "width": limits.max_side,
    }
    return tuple(_capped(control, caps.get(control.name)) for control in CONTROLS)


def _capped(control: Control, cap: int | None) -> Control:
    if cap is None or control.maximum is None:
        return control
    return replace(control, maximum=min(control.maximum, cap))


def options(
    controls: Iterable[Control],
    limits: LimitsConfig,
    defaults: Mapping[str, float],
    formats: Iterable[str],
) -> dict[str, Any]:
    """The answer of ``GET /v1/options``.

    Args:
        controls: The controls with this server's ranges.
        limits: What a request may ask for.
        defaults: The model's own.
        formats: Names of the formats that a picture can be had in.
    """
    return {
        "inputs": [
            {"name": name, "required": name in REQUIRED_INPUTS, "help": text}
            for name, text in IMAGE_INPUTS.items()
        ],
        "controls": [
            {
                **asdict(control),
                "default": defaults.get(control.name, control.default),
                "type": control.type.__name__,
                "allowed": control.allowed,
            }
            for control in controls
        ],
        "formats": list(formats),
        "limits": limits.model_dump(),
    }


def colorize_request_schema(controls: Iterable[Control]) -> dict[str, Any]:
    """OpenAPI description of the multipart form of ``POST /v1/colorize``."""
    properties: dict[str, Any] = {
        name: {"type": "string", "format": "binary", "description": text}
        for name, text in IMAGE_INPUTS.items()
    }
    properties["params"] = {
        "type": "string",
        "contentMediaType": "application/json",
        "description": "the controls below as one JSON object, instead of a field each",
    }
    properties |= {control.name: control_schema(control) for control in controls}
    form = {
        "type": "object",
        "required": list(REQUIRED_INPUTS),
        "properties": properties,
        "additionalProperties": False,
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": form}}}


def control_schema(control: Control) -> dict[str, Any]:
    """OpenAPI description of one control."""
    types = {int: "integer", float: "number", bool: "boolean", str: "string"}
    entry = {
        "type": types[control.type],
        "description": control.help,
        "default": control.default,
        "minimum": control.minimum,
        "maximum": control.maximum,
        "multipleOf": control.multiple_of,
        "enum": control.choices,
    }
    return {name: value for name, value in entry.items() if value is not None}
