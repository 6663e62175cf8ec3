"""Config files for ``serve deploy``: written from our settings, and checked.

Ray Serve's own schema ignores keys that it does not know, so a misspelt option would have no effect
and nobody would be told.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from nurie.config.serve import ServeConfig
from nurie_serve.app import APP_NAME

IMPORT_PATH = "nurie_serve.app:build"


def deploy_document(config: ServeConfig) -> dict[str, Any]:
    """The file's content for an application with these settings.

    Args:
        config: The settings; those that are defaults are left out.
    """
    args = config.model_dump(mode="json", exclude_defaults=True)
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": config.host, "port": config.port},
        "applications": [
            {"name": APP_NAME, "route_prefix": "/", "import_path": IMPORT_PATH, "args": args}
        ],
    }


def check_deploy_file(file: Path) -> None:
    """Check a config file for ``serve deploy``.

    Raises:
        ValueError: Naming every key that is unknown and every value that is wrong.
    """
    try:
        document = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not YAML: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{file}: not a mapping with `applications:`")
    faults = list(find_faults(document))
    if faults:
        raise ValueError("\n".join(f"{file}: {fault}" for fault in faults))


def find_faults(document: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a document for ``serve deploy``.

    Args:
        document: The file's content.
    """
    yield from _unknown_keys(document, ServeDeploySchema, "")
    try:
        ServeDeploySchema.model_validate(document)
    except ValidationError as error:
        yield from (_fault(each["loc"], each["msg"]) for each in error.errors())
        return
    for number, application in enumerate(document.get("applications", [])):
        where = f"applications.{number}"
        module, _, name = str(application.get("import_path")).partition(":")
        try:
            getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError):
            yield f"{where}.import_path: {application.get('import_path')} cannot be imported"
        if application.get("import_path") != IMPORT_PATH:
            continue
        try:
            ServeConfig(**application.get("args", {}))
        except ValidationError as error:
            for each in error.errors():
                yield _fault((*where.split("."), "args", *each["loc"]), each["msg"])


def _fault(place: tuple[int | str, ...], message: str) -> str:
    return f"{'.'.join(map(str, place))}: {message}"


def _unknown_keys(given: Mapping[str, Any], model: type[BaseModel], where: str) -> Iterator[str]:
    for key, value in given.items():
        if key not in model.model_fields:
            close = difflib.get_close_matches(key, model.model_fields, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            known = ", ".join(model.model_fields)
            yield f"{where}{key}: unknown key; {hint}allowed are {known}"
            continue
        annotation = model.model_fields[key].annotation
        for part in (annotation, *getattr(annotation, "__args__", ())):
            if not (isinstance(part, type) and issubclass(part, BaseModel)):
                continue
            inner = f"{where}{key}."
            if isinstance(value, Mapping):
                yield from _unknown_keys(value, part, inner)
            for number, each in enumerate(value if isinstance(value, list) else []):
                if isinstance(each, Mapping):
                    yield from _unknown_keys(each, part, f"{inner}{number}.")
