"""What a build starts from: the planned samples of a source, with digests of all that goes in."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nurie.config.data import CharactersSource, DataConfig, PicturesSource
from nurie.data.assets import find_assets
from nurie.data.buckets import make_buckets
from nurie.data.characters import ROLES, load_characters
from nurie.data.manifest import QuarantinedFile, file_sha256
from nurie.data.plan import plan_characters
from nurie.data.tagger import MODEL_FILE, TAGS_FILE
from nurie_pipelines.data.check import CheckedItem, check_items
from nurie_pipelines.data.collections import Item, collection_root, list_items
from nurie_pipelines.data.pictures import plan_pictures

_DECODER_PARTS = ("decoder.", "post_quant_conv.")


@dataclass(frozen=True, eq=False)
class SourcePlan:
    """The plan of a source.

    Attributes:
        plan: Table with ``PLAN_SCHEMA``.
        folder: Where the source's files are, a path or an address.
        digest: Digest of the source's content.
        roles: Colour roles of the label maps; empty for pictures without labels.
        quarantine: Files that cannot be used, and why.
    """

    plan: pa.Table
    folder: str
    digest: str
    roles: tuple[str, ...] = ()
    quarantine: tuple[QuarantinedFile, ...] = field(default=())


def plan_source(config: DataConfig, console: Console) -> SourcePlan:
    """Plan the source of a build; for a collection, every picture is opened once.

    Raises:
        FileNotFoundError: If the source does not exist.
        ValueError: If it holds too few usable pictures, or too many that are not.
    """
    source = config.source
    if isinstance(source, CharactersSource):
        folder = find_assets("characters")
        if any(ratio != 1 for ratio in config.aspect_ratios):
            raise ValueError(
                f"aspect_ratios: {list(config.aspect_ratios)}: the built-in characters are square; "
                "leave it at [1.0]"
            )
        plan = plan_characters(
            load_characters(folder),
            source,
            config.image_size,
            config.seed,
            config.mismatch_rounds,
            config.mismatch_strategy,
        )
        return SourcePlan(plan, str(folder), _digest_of(folder, "*.parquet"), ROLES)
    return _plan_collection(config, source, console)


def _plan_collection(config: DataConfig, source: PicturesSource, console: Console) -> SourcePlan:
    """List, open and plan a collection."""
    root = collection_root(source)
    items = list_items(source)
    columns = (
        TextColumn("checking"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("pictures"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("checking", total=sum(not item.problem for item in items))
        checked = check_items(config, source, items, lambda count: progress.advance(bar, count))
    checked = _all_with_sketches(checked)
    broken = tuple(
        QuarantinedFile(
            file=entry.item.name, step="check" if entry.opened else "list", reason=entry.problem
        )
        for entry in checked
        if entry.problem
    )
    _stop_if_too_many_broken(config, source, items, checked)
    buckets = make_buckets(config.image_size, config.aspect_ratios)
    plan = plan_pictures(
        source, checked, buckets, config.seed, config.mismatch_rounds, config.mismatch_strategy
    )
    content = "\n".join(f"{entry.item}\t{entry.sha256}" for entry in checked)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return SourcePlan(plan, root, digest, quarantine=broken)


def _stop_if_too_many_broken(
    config: DataConfig, source: PicturesSource, items: list[Item], checked: list[CheckedItem]
) -> None:
    """Raises if too many pictures that were opened cannot be used; filtered ones do not count."""
    pairs = zip(items, checked, strict=True)
    opened = [entry for item, entry in pairs if not item.problem]
    broken = [entry for entry in opened if entry.problem]
    if len(broken) <= config.max_quarantined_fraction * len(opened):
        return
    reasons = Counter(entry.problem.split(":")[0] for entry in broken).most_common(5)
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons)
    raise ValueError(
        f"source.path: {len(broken)} of {len(opened)} pictures of {source.path} cannot be used "
        f"({listed}), more than max_quarantined_fraction {config.max_quarantined_fraction:g}; "
        f"the first: {broken[0].item.name}: {broken[0].problem}"
    )


def _all_with_sketches(checked: list[CheckedItem]) -> list[CheckedItem]:
    """Where pictures come with sketches, those without one are left out: all rows are alike."""
    if not any(entry.item.sketch for entry in checked if not entry.problem):
        return checked
    problem = "missing_sketch: other pictures of the collection have one"
    return [
        entry
        if entry.problem or entry.item.sketch
        else replace(entry, item=replace(entry.item, problem=problem))
        for entry in checked
    ]


def model_digest(path: Path) -> str:
    """Return the digest of a model of the user's own: of its file, or of a tagger's folder."""
    return file_sha256(path) if path.is_file() else _digest_of(path, f"{MODEL_FILE}*", TAGS_FILE)


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
