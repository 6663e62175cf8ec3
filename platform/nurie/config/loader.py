"""From a YAML file to a validated configuration, with errors that name file, path and way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from nurie.config.base import ConfigModel
from nurie.config.data import DataConfig
from nurie.config.evaluate import AblationsConfig, EvaluateConfig, ResultsConfig
from nurie.config.keys import KeysConfig
from nurie.config.model import ModelConfig
from nurie.config.serve import ServeConfig
from nurie.config.train import EncodersTrainConfig, TrainConfig, VaeTrainConfig

CONFIG_KINDS: dict[str, type[ConfigModel]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "train-vae": VaeTrainConfig,
    "train-encoders": EncodersTrainConfig,
    "eval": EvaluateConfig,
    "eval-results": ResultsConfig,
    "ablations": AblationsConfig,
    "serve": ServeConfig,
    "keys": KeysConfig,
}
"""The value of a file's ``kind:`` and the model that validates the file."""


class ConfigError(ValueError):
    """A configuration the user has to correct.

    Attributes:
        file: The file that was loaded.
        problems: One ``(dotted path, message)`` per problem; the path may be empty.
    """

    def __init__(self, file: Path | str, problems: list[tuple[str, str]]) -> None:
        self.file = Path(file)
        self.problems = problems
        lines = [": ".join(filter(None, (str(file), *problem))) for problem in problems]
        super().__init__("\n".join(lines))


def load_config(path: Path | str, overrides: Mapping[str, Any] | None = None) -> ConfigModel:
    """Read, merge and validate one YAML file.

    Args:
        path: The file; its ``kind:`` selects the model of :data:`CONFIG_KINDS`.
        overrides: Values by dotted path, as ``{"stages.backbone.steps": 50}``; an entry of a list
            is named by its number or by its ``kind``.

    Raises:
        ConfigError: The file, or an override, does not describe a valid configuration.
    """
    values = read_yaml(path)
    for dotted, value in (overrides or {}).items():
        _override(values, dotted, value, Path(path))
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in CONFIG_KINDS:
        hint = _did_you_mean(str(kind), CONFIG_KINDS) or ";"
        allowed = ", ".join(CONFIG_KINDS)
        raise ConfigError(path, [("kind", f"got {kind!r}{hint} Allowed: {allowed}")])
    try:
        return CONFIG_KINDS[kind].model_validate(values)
    except ValidationError as error:
        raise ConfigError(path, _problems(error, values, CONFIG_KINDS[kind])) from None


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Return the mapping in a YAML file with every ``extends:`` merged in.

    Raises:
        ConfigError: The file is missing, is no mapping, repeats a key, or extends itself.
    """
    return _read(Path(path), ())


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, which plain YAML silently overwrites."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in readers:
        chain = " -> ".join(file.name for file in (*readers, resolved))
        raise ConfigError(readers[0], [("extends", f"the files extend each other: {chain}")])
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        asked_by = f" (named by `extends:` in {readers[-1]})" if readers else ""
        raise ConfigError(path, [("", f"{reason}{asked_by}")]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(path, [("", f"not valid YAML: {error}")]) from None
    if not isinstance(values, dict):
        found = type(values).__name__
        raise ConfigError(path, [("", f"expected `name: value` lines, found {found}")])
    return _extend(values, path, (*readers, resolved))


def _extend(values: dict[str, Any], path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    """Merge every ``extends:``, at any depth, under the keys beside it."""
    own = {key: _nested(value, path, readers) for key, value in values.items() if key != "extends"}
    if "extends" not in values:
        return own
    if not isinstance(values["extends"], str):
        problem = f"expected the name of one file, got {values['extends']!r}"
        raise ConfigError(path, [("extends", problem)])
    return _merge(_read(path.parent / values["extends"], readers), own, path)


def _nested(value: Any, path: Path, readers: tuple[Path, ...]) -> Any:
    if isinstance(value, dict):
        return _extend(value, path, readers)
    if isinstance(value, list):
        return [_nested(entry, path, readers) for entry in value]
    return value


def _merge(base: dict[str, Any], top: dict[str, Any], file: Path) -> dict[str, Any]:
    """Lay one mapping over another; a list gives way to a list, or takes changes by entry."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            merged[key] = _merge(below, value, file)
        elif isinstance(below, list) and isinstance(value, dict):
            merged[key] = _merge_entries(below, value, key, file)
        else:
            merged[key] = value
    return merged


def _merge_entries(base: list[Any], top: dict[str, Any], name: str, file: Path) -> list[Any]:
    merged = list(base)
    for entry, value in top.items():
        position = _position(merged, str(entry), f"{name}.{entry}", file)
        both = isinstance(merged[position], dict) and isinstance(value, dict)
        merged[position] = _merge(merged[position], value, file) if both else value
    return merged


def _override(values: dict[str, Any], dotted: str, value: Any, file: Path) -> None:
    *parents, last = dotted.split(".")
    here: Any = values
    for part in parents:
        if isinstance(here, dict):
            # A section the file leaves out has defaults: an override may open it.
            here = here.setdefault(part, {})
        elif isinstance(here, list):
            here = here[_position(here, part, dotted, file)]
    if isinstance(here, dict):
        here[last] = value
    elif isinstance(here, list):
        here[_position(here, last, dotted, file)] = value
    else:
        raise ConfigError(file, [(dotted, f"{parents[-1]} is a single value ({here!r})")])


def _position(entries: list[Any], part: str, dotted: str, file: Path) -> int:
    kinds = [entry.get("kind") if isinstance(entry, dict) else None for entry in entries]
    if part in kinds:
        return kinds.index(part)
    if part.isdigit() and int(part) < len(entries):
        return int(part)
    names = [kind for kind in kinds if kind] + [f"0..{len(entries) - 1}"]
    raise ConfigError(file, [(dotted, f"no entry {part!r}; there are: {', '.join(names)}")])


def _problems(
    error: ValidationError, values: dict[str, Any], model: type[ConfigModel]
) -> list[tuple[str, str]]:
    problems = []
    for detail in error.errors():
        path, owner = _walk(detail["loc"], values, model)
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden" and owner is not None:
            message = _unknown_key(path[-1], owner)
        elif detail["type"] == "missing":
            message = "missing; this setting has no default"
        elif not detail["msg"].startswith("Value error"):
            message = f"{message}, got {detail['input']!r:.80}"
        problems.append((".".join(path), message))
    return problems


def _unknown_key(name: str, owner: type[ConfigModel]) -> str:
    allowed = list(owner.model_fields)
    return f"unknown setting{_did_you_mean(name, allowed) or ';'} Allowed: {', '.join(allowed)}"


def _did_you_mean(name: str, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _walk(
    loc: tuple[int | str, ...], values: Any, model: type[ConfigModel]
) -> tuple[list[str], type[ConfigModel] | None]:
    """Return pydantic's location as written in the YAML, and the model that owns its last part."""
    path: list[str] = []
    owner: type[ConfigModel] | None = model
    annotation: Any = model
    for part in loc:
        if isinstance(values, dict) and part not in values and values.get("kind") == part:
            continue  # pydantic names the member of a union, which the YAML does not
        path.append(str(part))
        owner = _owner(annotation, values)
        if isinstance(part, str) and owner is not None and part in owner.model_fields:
            annotation = owner.model_fields[part].annotation
        values = _child(values, part)
    return path, owner


def _child(values: Any, part: int | str) -> Any:
    if isinstance(values, dict):
        return values.get(part)
    if isinstance(values, list) and isinstance(part, int) and part < len(values):
        return values[part]
    return None


def _owner(annotation: Any, values: Any) -> type[ConfigModel] | None:
    """Choose the model in an annotation that the mapping's ``kind`` names, or the only one."""
    models = list(_models(annotation))
    kind = values.get("kind") if isinstance(values, dict) else None
    named = [model for model in models if _default_kind(model) == kind]
    return next(iter(named or models), None)


def _models(annotation: Any) -> Iterator[type[ConfigModel]]:
    if isinstance(annotation, type) and issubclass(annotation, ConfigModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _default_kind(model: type[ConfigModel]) -> Any:
    field = model.model_fields.get("kind")
    return field.default if field else None
