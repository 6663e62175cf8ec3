"""What a build starts from: the planned samples of a source, with digests of all that goes in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from nurie.config.data import CharactersSource, DataConfig
from nurie.data.assets import find_assets
from nurie.data.characters import ROLES, load_characters
from nurie.data.manifest import QuarantinedFile, file_sha256
from nurie.data.plan import plan_characters
from nurie_pipelines.data.folder import check_files, find_pictures, plan_folder

_DECODER_PARTS = ("decoder.", "post_quant_conv.")


@dataclass(frozen=True, eq=False)
class SourcePlan:
    """The plan of a source.

    Attributes:
        plan: Table with ``PLAN_SCHEMA``.
        folder: Where the source's files are.
        digest: Digest of the source's content.
        roles: Colour roles of the label maps; empty for pictures without labels.
        quarantine: Files that cannot be used, and why.
    """

    plan: pa.Table
    folder: Path
    digest: str
    roles: tuple[str, ...] = ()
    quarantine: tuple[QuarantinedFile, ...] = field(default=())


def plan_source(config: DataConfig) -> SourcePlan:
    """Plan the source of a build; for a folder, every file is opened once to check it.

    Raises:
        FileNotFoundError: If the source does not exist.
        ValueError: If it holds too few usable pictures.
    """
    source = config.source
    if isinstance(source, CharactersSource):
        folder = find_assets("characters")
        plan = plan_characters(load_characters(folder), source, config.seed, config.mismatch_rounds)
        return SourcePlan(plan, folder, _digest_of(folder, "*.parquet"), ROLES)
    checked = check_files(source.path, find_pictures(source.path), config.num_cpus)
    plan = plan_folder(source, checked, config.seed, config.mismatch_rounds)
    content = "\n".join(f"{file.name}\t{file.sha256}" for file in checked)
    broken = tuple(
        QuarantinedFile(file=file.name, reason=file.reason) for file in checked if file.reason
    )
    return SourcePlan(
        plan, source.path, hashlib.sha256(content.encode()).hexdigest(), quarantine=broken
    )


def vae_digest(folder: Path) -> str:
    """Return one digest over what the latents depend on: configuration and encoder weights.

    A decoder that is trained further leaves the data set as it is.

    Raises:
        FileNotFoundError: If the folder holds no autoencoder.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"vae: {folder} has no config.json; make it with 'nurie train' (kind train-vae) or "
            "leave 'vae' out, then pictures are encoded while training"
        )
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        for name, data in _tensors(file):
            if not name.startswith(_DECODER_PARTS):
                digest.update(name.encode() + b"\0" + data)
    return digest.hexdigest()


def _tensors(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of the tensors of a safetensors file, without importing torch.

    The format: length of the header (8 bytes), the header in JSON, the tensors' bytes.
    """
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    for name in sorted(header.keys() - {"__metadata__"}):
        first, end = header[name]["data_offsets"]
        yield name, content[start + first : start + end]


def _digest_of(folder: Path, *patterns: str) -> str:
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    content = "\n".join(f"{file.name}\t{file_sha256(file)}" for file in files)
    return hashlib.sha256(content.encode()).hexdigest()
