"""From what a run was made: commit, changed files, installed packages, configuration."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path

import nurie
from nurie.checkpoints.manifest import write_atomically

CONFIG_FILE = "resolved.yaml"
PACKAGES_FILE = "packages.txt"
ORIGIN_FILE = "origin.json"


@dataclass(frozen=True)
class Origin:
    """What decides, besides data and machine, what a run computes.

    Args:
        version: Of nurie.
        commit: Git commit of the source (None: not run from a repository).
        branch: Its branch (None: unknown, or no branch is checked out).
        dirty: Whether files that git knows differ from the commit (None: no commit).
        lock_sha256: Digest of ``packages.txt``: names and versions of the installed packages.
        config_sha256: Digest of ``resolved.yaml``, the complete configuration.
    """

    version: str
    commit: str | None
    branch: str | None
    dirty: bool | None
    lock_sha256: str
    config_sha256: str


def write_origin(folder: Path) -> Origin:
    """Write ``origin.json`` and ``packages.txt`` beside the ``resolved.yaml`` of a run.

    Args:
        folder: Folder of the run.
    """
    packages = installed_packages().encode()
    write_atomically(folder / PACKAGES_FILE, packages)
    commit, branch, dirty = source_commit()
    origin = Origin(
        version=nurie.__version__,
        commit=commit,
        branch=branch,
        dirty=dirty,
        lock_sha256=hashlib.sha256(packages).hexdigest(),
        config_sha256=hashlib.sha256((folder / CONFIG_FILE).read_bytes()).hexdigest(),
    )
    write_atomically(folder / ORIGIN_FILE, json.dumps(asdict(origin), indent=1).encode())
    return origin


def installed_packages() -> str:
    """A line ``name==version`` for every installed package, sorted; nurie has its commit."""
    found = {f"{d.name.lower().replace('_', '-')}=={d.version}" for d in distributions() if d.name}
    return "".join(f"{line}\n" for line in sorted(found) if not line.startswith("nurie=="))


def source_commit() -> tuple[str | None, str | None, bool | None]:
    """Commit, branch and whether tracked files were changed, of the repository of this code."""
    # An installed wheel may lie inside somebody else's repository.
    if "site-packages" in nurie.__file__:
        return None, None, None
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None, None, None
    branch = _git("symbolic-ref", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return commit, branch, bool(changed)


def _git(*words: str) -> str | None:
    """Answer of git about the folder of this code; None without git or without an answer."""
    folder = Path(nurie.__file__).parent
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
