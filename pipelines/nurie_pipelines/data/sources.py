"""What a build starts from: the planned samples of a source, with digests of all that goes in."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions while it is imported)

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nurie.config.data import CharactersSource, DataConfig, PicturesSource
from nurie.data.assets import find_assets
from nurie.data.characters import ROLES, load_characters
from nurie.data.manifest import QUARANTINE_SCHEMA, file_sha256
from nurie.data.plan import Plan, plan_characters
from nurie.data.tagger import MODEL_FILE, TAGS_FILE
from nurie_pipelines.data.check import check_items
from nurie_pipelines.data.collections import collection_root, list_items
from nurie_pipelines.data.collections.item import ITEM_SCHEMA
from nurie_pipelines.data.pictures import columns_of_plan, plan_pictures

_ROWS_AT_ONCE = 2**14
_DECODER_PARTS = ("decoder.", "post_quant_conv.")


@dataclass(frozen=True, eq=False)
class SourcePlan:
    """The plan of a source.

    Attributes:
        plan: The samples.
        folder: Where the source's files are, a path or an address.
        digest: Digest of the source's content.
        roles: Colour roles of the label maps; empty for pictures without labels.
        quarantine: Files that are not used, and why (``QUARANTINE_SCHEMA``).
    """

    plan: Plan
    folder: str
    digest: str
    roles: tuple[str, ...] = ()
    quarantine: pa.Table = field(default_factory=QUARANTINE_SCHEMA.empty_table)


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
        plan = plan_characters(config, source, load_characters(folder))
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
        bar = progress.add_task("checking", total=pc.sum(pc.equal(items["problem"], "")).as_py())
        checked = check_items(config, source, items, lambda count: progress.advance(bar, count))
    del items
    checked = _all_with_sketches(checked)
    _stop_if_too_many_broken(config, source, checked)
    digest = _digest_of_items(checked)
    quarantine = _quarantine(checked)
    usable = pc.indices_nonzero(pc.equal(checked["problem"], ""))
    checked = checked.select(columns_of_plan(config)).take(usable)
    return SourcePlan(plan_pictures(config, source, checked), root, digest, quarantine=quarantine)


def _quarantine(checked: pa.Table) -> pa.Table:
    left_out = checked.filter(pc.field("problem") != "")
    steps = pc.if_else(left_out["opened"], "check", "list")
    return pa.table({"file": left_out["name"], "step": steps, "reason": left_out["problem"]})


def _digest_of_items(checked: pa.Table) -> str:
    """Digest of everything that is known of a collection, but for what follows from its bytes."""
    digest = hashlib.sha256()
    for batch in checked.select([*ITEM_SCHEMA.names, "sha256"]).to_batches(_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            digest.update(f"{row}\n".encode())
    return digest.hexdigest()


def _stop_if_too_many_broken(config: DataConfig, source: PicturesSource, checked: pa.Table) -> None:
    """Raises if too many pictures that were opened cannot be used; filtered ones do not count."""
    opened = checked.filter(checked["opened"])
    broken = opened.filter(pc.field("problem") != "")
    if broken.num_rows <= config.max_quarantined_fraction * opened.num_rows:
        return
    problems = broken["problem"].to_pylist()
    reasons = Counter(problem.split(":")[0] for problem in problems).most_common(5)
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons)
    raise ValueError(
        f"source.path: {len(problems)} of {opened.num_rows} pictures of {source.path} cannot be "
        f"used ({listed}), more than max_quarantined_fraction "
        f"{config.max_quarantined_fraction:g}; the first: {broken['name'][0]}: {problems[0]}"
    )


def _all_with_sketches(checked: pa.Table) -> pa.Table:
    """Where pictures come with sketches, those without one are left out: all rows are alike."""
    usable, drawn = pc.equal(checked["problem"], ""), checked["sketch"].is_valid()
    if not pc.any(pc.and_(usable, drawn)).as_py():
        return checked
    problem = "missing_sketch: other pictures of the collection have one"
    without = pc.and_not(usable, drawn)
    problems = pc.if_else(without, pa.scalar(problem, pa.large_string()), checked["problem"])
    return checked.set_column(checked.column_names.index("problem"), "problem", problems)


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
