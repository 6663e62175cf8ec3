"""The digest manifest that makes a checkpoint folder all-or-nothing.

``MANIFEST.json`` is written last. A folder without it is unfinished, a folder that differs from it
is damaged, and neither is ever loaded. The digest of the manifest names the whole folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path, PurePosixPath
from uuid import uuid4

MANIFEST_NAME = "MANIFEST.json"
CARD_NAME = "README.md"
FORMAT = "nurie-manifest/1"
PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
_CHUNK = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint folder is unfinished, damaged or not allowed; the message names the file."""


def write_manifest(folder: str | Path) -> str:
    """Write ``MANIFEST.json``: SHA-256 and size in bytes of every file below ``folder``.

    The manifest appears at once or not at all. Hidden files are left out.

    Returns:
        The digest that names the folder, as ``manifest_digest`` gives it.

    Raises:
        CheckpointError: ``folder`` is no folder, or holds no file.
    """
    folder = Path(folder)
    files = _files_of(folder)
    if not files:
        raise CheckpointError(f"{folder}: there are no files to list in a manifest")
    entries = {
        name: {"sha256": file_digest(path), "size": path.stat().st_size}
        for name, path in files.items()
    }
    text = json.dumps({"format": FORMAT, "files": entries}, indent=1, sort_keys=True) + "\n"
    write_atomically(folder / MANIFEST_NAME, text.encode())
    return manifest_digest(folder)


def verify_manifest(
    folder: str | Path, *, allow_pickles: bool = False, but_card: bool = False
) -> str:
    """Check every file of a checkpoint folder against its manifest.

    Args:
        folder: The checkpoint.
        allow_pickles: Accept listed pickles (``.pt``, ``.bin``, ...), for the engine state of our
            own training checkpoints. Loading a pickle runs its code, so models never contain one.
        but_card: Let the card be another than listed: a person has changed it.

    Returns:
        The digest of the manifest.

    Raises:
        CheckpointError: Names the first file that is missing, has another size or digest, is not
            listed, or is a pickle.
    """
    folder = Path(folder)
    listed = _read_entries(folder)
    present = _files_of(folder)
    if but_card:
        present.pop(CARD_NAME, None)
        listed.pop(CARD_NAME, None)
    for name in present:
        pickled = PurePosixPath(name).suffix.lower() in PICKLE_SUFFIXES
        if pickled and not (allow_pickles and name in listed):
            raise CheckpointError(
                f"{folder / name}: pickle files are refused, because loading one runs its code; "
                "convert the weights to safetensors"
            )
        if name not in listed:
            raise CheckpointError(
                f"{folder / name}: this file is not listed in {MANIFEST_NAME}; remove it, "
                "or write the manifest again if it belongs to the checkpoint"
            )
    for name, entry in listed.items():
        _verify_file(folder / name, entry)
    return manifest_digest(folder)


def manifest_digest(folder: str | Path) -> str:
    """SHA-256 (hex) of ``MANIFEST.json``: the name of exactly these files.

    Raises:
        CheckpointError: There is no manifest.
    """
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        raise CheckpointError(
            f"{path}: missing; the folder is no checkpoint, or writing it was interrupted"
        )
    return file_digest(path)


def weights_digest(folder: str | Path) -> str:
    """SHA-256 (hex) of all that the manifest lists but the card: a new card is no new model.

    Raises:
        CheckpointError: There is no readable manifest.
    """
    entries = _read_entries(Path(folder))
    lines = [
        f"{entries[name]['sha256']}  {name}\n" for name in sorted(entries.keys() - {CARD_NAME})
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def publish_folder(temporary: str | Path, final: str | Path, *, replace: bool = False) -> Path:
    """Move a finished folder to its final name, durably: readers see all of it or nothing.

    Args:
        temporary: The folder, on the same file system as ``final``.
        final: The name it gets.
        replace: Put it in the place of an existing folder; the old one is deleted afterwards.

    Raises:
        CheckpointError: ``final`` exists and ``replace`` is false.
    """
    temporary, final = Path(temporary), Path(final)
    if final.exists() and not replace:
        raise CheckpointError(f"{final}: already exists and is not overwritten")
    for path in [*temporary.rglob("*"), temporary]:
        _sync(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    old = final.with_name(f".{final.name}.old-{uuid4().hex[:8]}")
    if final.exists():
        os.rename(final, old)
    os.rename(temporary, final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)
    return final


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _files_of(folder: Path) -> dict[str, Path]:
    """Relative POSIX name -> path of every visible file but the manifest, sorted by name."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder")
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {
        name: path
        for name, path in sorted(found.items())
        if path.is_file()
        and name != MANIFEST_NAME
        and not any(part.startswith(".") for part in PurePosixPath(name).parts)
    }


def _read_entries(folder: Path) -> dict[str, dict[str, object]]:
    manifest_digest(folder)
    path = folder / MANIFEST_NAME
    try:
        content = json.loads(path.read_bytes())
        entries = content["files"]
        known = content["format"] == FORMAT and isinstance(entries, dict)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: this is no readable manifest ({error})") from error
    if not known:
        raise CheckpointError(f"{path}: the format must be {FORMAT!r}")
    for name in entries:
        parts = PurePosixPath(name).parts
        if PurePosixPath(name).is_absolute() or ".." in parts:
            raise CheckpointError(f"{path}: lists {name!r}, which is outside of the folder")
    return entries


def _verify_file(path: Path, entry: dict[str, object]) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, though {MANIFEST_NAME} lists it")
    size = path.stat().st_size
    if size != entry.get("size"):
        raise CheckpointError(f"{path}: has {size} bytes instead of {entry.get('size')}")
    digest = file_digest(path)
    if digest != entry.get("sha256"):
        raise CheckpointError(
            f"{path}: the content has changed (SHA-256 {digest[:12]}... instead of "
            f"{str(entry.get('sha256'))[:12]}...)"
        )


def _sync(path: Path) -> None:
    """Flush a file or a folder entry to the disk; a rename is only durable after that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
