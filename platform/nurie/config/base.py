"""The base of all configuration models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict


class ConfigModel(BaseModel):
    """Immutable, typo-proof settings; the docstring below a field is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
"""A path that is made absolute while loading: Ray workers run in other directories."""


def _absolute(location: str) -> str:
    remote = "://" in location or location.startswith("models:/")
    return location if remote else str(Path(location).expanduser().absolute())


Location = Annotated[str, AfterValidator(_absolute)]
"""A path, made absolute, or the address of a file system that fsspec knows (``s3://...``)."""


def _absolute_unless_address(place: object) -> Path | str:
    if not isinstance(place, (Path, str)):
        raise ValueError(f"expected a path or an address, got {place!r}")
    return str(place) if "://" in str(place) else Path(place).expanduser().absolute()


DataLocation = Annotated[Path | str, BeforeValidator(_absolute_unless_address)]
"""The folder of a data set: a path, made absolute, or an address, which stays a text."""
