"""What travels between the ingress and the colorizer, and how the API describes itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
PREVIEW_EVERY = Control(
    "preview_every",
    int,
    0,
    "steps between two previews in the job's events; 0: none",
    minimum=0,
    maximum=100,
)
PRIORITY = Control(
    "priority",
    int,
    0,
    "jobs of a higher one are taken first; max_priority of the server or key limits it",
    minimum=-10,
    maximum=10,
)
SIDE_FIELDS = (PREVIEW_EVERY, PRIORITY)
"""Fields beside the controls: they change nothing of the picture."""
WEBHOOK = "webhook"
MAX_WEBHOOK = 2000
_WEBHOOK_SCHEMA = {
    "type": "string",
    "maxLength": MAX_WEBHOOK,
    "description": "address that the job is sent to when it has ended; only hosts that the server "
    "allows",
}


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


def side_fields(limits: LimitsConfig) -> tuple[Control, ...]:
    """The fields beside the controls with the ranges that this server or key allows."""
    caps = {PRIORITY.name: limits.max_priority}
    return tuple(_capped(field, caps.get(field.name)) for field in SIDE_FIELDS)


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


def colorize_request_schema(controls: Sequence[Control]) -> dict[str, Any]:
    """OpenAPI description of the body of ``POST /v1/colorize``: a form or JSON."""
    data_url = {"type": "string", "pattern": "^(data:image/(png|jpeg|webp);base64,|upl_)"}
    params = {"type": "object", "additionalProperties": True}
    body = _object_schema(controls, data_url, params)
    content = {**form_schema(controls)["content"], "application/json": {"schema": body}}
    return {"required": True, "content": content}


def form_schema(controls: Sequence[Control]) -> dict[str, Any]:
    """OpenAPI description of the multipart form of ``POST /v1/colorize`` alone."""
    params = {"type": "string", "contentMediaType": "application/json"}
    form = _object_schema(controls, {"type": "string", "format": "binary"}, params)
    return {"required": True, "content": {"multipart/form-data": {"schema": form}}}


def _object_schema(
    controls: Sequence[Control], picture: Mapping[str, Any], params: Mapping[str, Any]
) -> dict[str, Any]:
    properties: dict[str, Any] = {
        name: {**picture, "description": text} for name, text in IMAGE_INPUTS.items()
    }
    text = "the controls below as one JSON object, instead of a field each"
    properties["params"] = {**params, "description": text}
    properties |= {each.name: control_schema(each) for each in (*controls, *SIDE_FIELDS)}
    properties[WEBHOOK] = _WEBHOOK_SCHEMA
    return {
        "type": "object",
        "required": list(REQUIRED_INPUTS),
        "properties": properties,
        "additionalProperties": False,
    }


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
