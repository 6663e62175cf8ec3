"""Configuration files with overrides from the command line: docs/adr/0002-config-overrides.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml

from nurie.config.base import ConfigModel
from nurie.config.loader import ConfigError, load_config

Model = TypeVar("Model", bound=ConfigModel)

OVERRIDES_HELP = """
Any setting of the file can be given on the command line:
  --seed 3  --engine.num-workers 1  --stages.backbone.steps 50  --tracking.alias null
`nurie config show FILE` lists them all with their values.
"""


def add_config_argument(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Let a command take a configuration file and overrides of its settings."""
    parser.set_defaults(takes_settings=True, default_config=default)
    parser.epilog = OVERRIDES_HELP
    parser.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?" if default else None,
        default=default,
        help="YAML file" + (f" (default: {default})" if default else ""),
    )


def config_and_settings(
    arguments: Sequence[str], config: str | None, settings: Sequence[str], default: str | None
) -> tuple[str | None, list[str]]:
    """Tell the file from the values of settings, which argparse does not know.

    Args:
        arguments: The words of the command line.
        config: What argparse took for the file; after ``--model assets/nano`` it is that value.
        settings: The words that argparse left.
        default: The file where none is given (None: one must be given).

    Returns:
        The file, None if there is none, and the words of the settings.
    """
    words = list(settings)
    flag = arguments[arguments.index(config) - 1] if config in arguments else ""
    if config is None or flag not in words or "=" in flag:
        return config, words
    words.insert(words.index(flag) + 1, config)
    follows_flag = False
    for place, word in enumerate(words):
        if not word.startswith("--") and not follows_flag:
            return words.pop(place), words
        follows_flag = word.startswith("--") and "=" not in word
    return default, words


def load(path: str, settings: Sequence[str], model: type[Model]) -> Model:
    """Load a configuration of the expected kind with overrides applied.

    Raises:
        ConfigError: The file or an override is wrong, or the file is of another kind.
    """
    config = load_config(path, parse_overrides(settings, path))
    if not isinstance(config, model):
        wanted = model.model_fields["kind"].default
        raise ConfigError(path, [("kind", f"this command needs a file of kind {wanted!r}")])
    return config


def parse_overrides(settings: Sequence[str], path: str) -> dict[str, Any]:
    """Turn ``["--engine.num-workers", "1", "--seed=3"]`` into values by dotted path.

    Values are read as YAML, so ``null``, ``true`` and ``[1, 2]`` mean what they mean in the file.

    Raises:
        ConfigError: A flag has no value, or a word belongs to no flag.
    """
    overrides: dict[str, Any] = {}
    words = iter(settings)
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name == "--":
            raise ConfigError(path, [("", f"{word!r} is neither a setting nor its value")])
        dotted = name[2:].replace("-", "_")
        if not equals and (following := next(words, None)) is not None:
            equals, value = "=", following
        if not equals or value.startswith("--"):
            raise ConfigError(path, [(dotted, f"give it a value: {name} VALUE")])
        try:
            overrides[dotted] = yaml.safe_load(value)
        except yaml.YAMLError:
            overrides[dotted] = value
    return overrides
