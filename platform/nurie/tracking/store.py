"""Where a tracking store and its artifacts are; knows no MLflow, whose import takes seconds."""

from __future__ import annotations

from pathlib import Path


def tracking_uri(uri: str) -> str:
    """The store's URI with an absolute SQLite path, whose folder exists afterwards."""
    if not uri.startswith("sqlite:"):
        return uri
    path = sqlite_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path}"


def sqlite_path(uri: str) -> Path:
    """File of a ``sqlite:///`` URI; a relative one is taken from the current directory."""
    return Path(uri.removeprefix("sqlite:///")).expanduser().absolute()


def artifact_root(uri: str) -> Path | None:
    """Folder of the artifacts beside a SQLite store; None: the server decides."""
    return sqlite_path(uri).parent / "mlartifacts" if uri.startswith("sqlite:") else None
