"""Where the bundled pictures and weights lie."""

from __future__ import annotations

from pathlib import Path


def find_assets(name: str) -> Path:
    """Return the folder ``assets/<name>`` of the current directory or of the repository.

    Raises:
        FileNotFoundError: If neither has it.
    """
    for root in (Path.cwd(), *Path(__file__).resolve().parents):
        folder = root / "assets" / name
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"no 'assets/{name}' in {Path.cwd()} nor beside the installed package: "
        "run from the repository root or pass the folder's path"
    )
