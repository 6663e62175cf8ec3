"""Opening every picture of a collection once, before anything is made of it."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions while it is imported)

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self, cast

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from PIL import Image

from nurie.config.data import DataConfig, PicturesSource
from nurie.data.colour_histogram import NUM_COLOURS, colour_histogram
from nurie.data.lines import xdog
from nurie.data.near_duplicates import HASH_BITS, difference_hash
from nurie.data.picture_models import PictureScore
from nurie.data.schema import Row
from nurie.data.tagger import Tagger
from nurie.inference.images import ImageError, decode_image, to_rgb
from nurie_pipelines.cluster import connect
from nurie_pipelines.data.collections import collection_root
from nurie_pipelines.data.collections.item import TAGS
from nurie_pipelines.data.collections.storage import StorageError, read_bytes

MAX_PIXELS = 64_000_000
ITEMS_PER_BLOCK = 64
MIN_INK, MAX_INK = 0.002, 0.6
"""Share of a picture's sketch that is line, at least and at most."""
_THUMBNAIL = 256
ITEMS_PER_WAVE = 2**18
"""Items that Ray Data is given at once: what it holds of them does not grow with the set."""
CHECKED_COLUMNS = (
    pa.field("sha256", pa.large_string()),
    pa.field("hash", pa.binary(HASH_BITS // 8)),
    pa.field("colours", pa.list_(pa.float32(), NUM_COLOURS)),
    pa.field("score", pa.float64()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
)
"""What opening a picture adds to its item: the digest of the picture and of what belongs to it,
difference hash, ``nurie.data.colour_histogram``, aesthetic score (its layout's or the model's) and
size. Null where there is none, of what was not opened, and of what could not be read."""
_RESULT = pa.schema(
    [("number", pa.int64()), *CHECKED_COLUMNS, ("tags", TAGS), ("problem", pa.large_string())]
)


@dataclass(frozen=True)
class Scorers:
    """The user's models that look at whole pictures."""

    aesthetic: PictureScore | None = None
    safety: PictureScore | None = None
    tagger: Tagger | None = None

    @classmethod
    def of(cls, source: PicturesSource) -> Self:
        """Opens the models that a source names.

        Raises:
            nurie.data.picture_models.PictureModelError: If one that scores cannot be used.
            nurie.data.tagger_graph.TaggerError: If the tagger cannot be used.
        """
        aesthetic, safety, tagger = source.aesthetic_model, source.safety_model, source.tagger
        return cls(
            PictureScore(aesthetic) if aesthetic else None,
            PictureScore(safety) if safety else None,
            Tagger.from_folder(tagger.path) if tagger else None,
        )

    def __bool__(self) -> bool:
        """Whether there is a model at all."""
        return any((self.aesthetic, self.safety, self.tagger))


def check_items(
    config: DataConfig,
    source: PicturesSource,
    items: pa.Table,
    tell: Callable[[int], None] = lambda count: None,
) -> pa.Table:
    """Open every picture and what belongs to it, in parallel: digest it, see whether it decodes.

    Args:
        config: The build: tasks at a time, actors and GPUs for models.
        source: The collection.
        items: Its items (``ITEM_SCHEMA``); those with a problem are not opened.
        tell: Called with the number of items that were opened since.

    Returns:
        The items, in their order, with the problems that were found and, where the layout has none,
        the tagger's tags; further columns are ``opened`` and ``CHECKED_COLUMNS``.

    Raises:
        nurie.data.picture_models.PictureModelError: If a model that scores cannot be used.
        nurie.data.tagger_graph.TaggerError: If the tagger cannot be used.
    """
    Scorers.of(source)  # a wrong model is an error now, not in a worker
    opened = pc.equal(items["problem"], "").to_numpy(zero_copy_only=False)
    numbers = np.flatnonzero(opened)
    found = [_RESULT.empty_table()]
    for start in range(0, len(numbers), ITEMS_PER_WAVE):
        found.append(_check_in_ray(config, source, items, numbers[start:][:ITEMS_PER_WAVE], tell))
    results = pa.concat_tables(found).unify_dictionaries().combine_chunks()
    # A row of nulls for what was not opened.
    place = np.zeros(items.num_rows, np.int64)
    place[results["number"].to_numpy()] = np.arange(results.num_rows)
    results = results.take(pa.array(place, mask=~opened))
    tags = items["tags"]
    if source.tagger is not None:
        own = ~opened | (pc.list_value_length(tags).to_numpy() > 0)
        both = pa.chunked_array([*tags.chunks, *results["tags"].chunks], TAGS).combine_chunks()
        tags = both.take(pa.array(np.arange(len(tags)) + np.where(own, 0, len(tags))))
    problems = pc.if_else(opened, results["problem"], items["problem"])
    columns = dict(zip(items.column_names, items.columns, strict=True))
    columns |= {"tags": tags, "problem": problems, "opened": pa.array(opened)}
    return pa.table(columns | {field.name: results[field.name] for field in CHECKED_COLUMNS})


def _check_in_ray(
    config: DataConfig,
    source: PicturesSource,
    items: pa.Table,
    numbers: np.ndarray,
    tell: Callable[[int], None],
) -> pa.Table:
    """Results (``_RESULT``) of some items, in any order."""
    connect(config.num_cpus)
    blocks = [
        to_check(items, numbers[start : start + ITEMS_PER_BLOCK])
        for start in range(0, len(numbers), ITEMS_PER_BLOCK)
    ]
    dataset, whole = ray.data.from_arrow(blocks), {"batch_size": None, "batch_format": "pyarrow"}
    if source.aesthetic_model or source.safety_model or source.tagger:
        dataset = dataset.map_batches(
            _CheckWithModels,
            fn_constructor_args=(source,),
            compute=ray.data.ActorPoolStrategy(size=min(config.num_model_actors, len(blocks))),
            num_gpus=config.model_gpus,
            **whole,
        )
    else:
        dataset = dataset.map_batches(
            partial(check_rows, source=source, scorers=Scorers()),
            compute=ray.data.TaskPoolStrategy(size=min(config.num_cpus, len(blocks))),
            **whole,
        )
    parts: list[pa.Table] = []
    for part in dataset.iter_batches(**whole):
        parts.append(cast("pa.Table", part).cast(_RESULT))
        tell(parts[-1].num_rows)
    return pa.concat_tables(parts).unify_dictionaries().combine_chunks()


def to_check(items: pa.Table, numbers: np.ndarray) -> pa.Table:
    """What a worker needs to know of items."""
    names = ["picture", "sketch", "mask", "aesthetic_score", "tags"]
    part = items.select(names).take(numbers)
    has_tags = pc.greater(pc.list_value_length(part["tags"]), 0)
    part = part.set_column(names.index("tags"), "has_tags", has_tags)
    return part.append_column("number", pa.array(numbers))


class _CheckWithModels:
    """Ray actor that keeps the models open."""

    def __init__(self, source: PicturesSource) -> None:
        self._source, self._scorers = source, Scorers.of(source)

    def __call__(self, rows: pa.Table) -> pa.Table:
        return check_rows(rows, self._source, self._scorers)


def check_rows(rows: pa.Table, source: PicturesSource, scorers: Scorers) -> pa.Table:
    """What opening finds, one row per item.

    Args:
        rows: ``number``, ``picture``, ``sketch``, ``mask``, ``aesthetic_score`` and ``has_tags``.
        source: The collection.
        scorers: Models that look at the pictures.
    """
    cv2.setNumThreads(1)  # Ray runs one task per core already
    checked = [
        {"number": row["number"], **_check(row, source, scorers)} for row in rows.to_pylist()
    ]
    return pa.Table.from_pylist(checked, schema=_RESULT)


def _check(row: Row, source: PicturesSource, scorers: Scorers) -> Row:
    """Digest of the picture and what belongs to it, what it looks like, and the first problem."""
    root, digest = collection_root(source), hashlib.sha256()
    found: Row = {"score": row["aesthetic_score"], "problem": ""}
    for part in ("picture", "sketch", "mask"):
        if row[part] is None:
            continue
        where = "" if part == "picture" else f"{part} "
        try:
            data = read_bytes(root, row[part])
            digest.update(data)
            picture = decode_image(data, part, MAX_PIXELS)
        except (ImageError, StorageError) as error:
            return found | {"problem": f"{error.code}: {where}{error.message}"}
        if part == "picture":
            image = _thumbnail(picture)
            found |= {
                "width": picture.width,
                "height": picture.height,
                "hash": difference_hash(image),
                "colours": colour_histogram(image),
                "problem": _unfit(picture, image, source),
            }
            if scorers and not found["problem"]:
                found |= _looked_at(np.asarray(to_rgb(picture)), row, source, scorers)
        elif picture.size != (found["width"], found["height"]) and not found["problem"]:
            found["problem"] = (
                f"size_mismatch: the {part} is {picture.width} x {picture.height} pixels, the "
                "picture is not"
            )
    return found | {"sha256": digest.hexdigest()}


def _thumbnail(picture: Image.Image) -> np.ndarray:
    small = to_rgb(picture).copy()  # thumbnail() changes its picture
    small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small)


def _unfit(picture: Image.Image, thumbnail: np.ndarray, source: PicturesSource) -> str:
    """Why a whole picture is of no use for training (empty: it is)."""
    short, long = sorted(picture.size)
    size = f"{picture.width} x {picture.height} pixels"
    if short < source.min_side:
        return f"too_small: {size}; min_side is {source.min_side}"
    if long > source.max_aspect_ratio * short:
        return f"too_long: {size}; max_aspect_ratio is {source.max_aspect_ratio:g}"
    ink = float(1 - xdog(thumbnail).mean())
    if not MIN_INK <= ink <= MAX_INK:
        return f"bad_lines: {100 * ink:.1f} % of its sketch would be line"
    return ""


def _looked_at(image: np.ndarray, row: Row, source: PicturesSource, scorers: Scorers) -> Row:
    """Aesthetic score and tags of a picture, and the problem if its scores leave it out."""
    problem, minimum = "", source.min_aesthetic_score
    score, tags = row["aesthetic_score"], None
    if scorers.aesthetic is not None and score is None:
        score = scorers.aesthetic(image)
        if minimum is not None and score < minimum:
            problem = f"aesthetic_score: {score:g} is below {minimum:g}"
    if scorers.safety is not None and source.safety_model is not None and not problem:
        unsafe, maximum = scorers.safety(image), source.safety_model.max_score
        if unsafe > maximum:
            problem = f"unsafe: {unsafe:g} is above {maximum:g}"
    wanted = source.tagger
    if scorers.tagger is not None and wanted is not None and not (row["has_tags"] or problem):
        (scored,) = scorers.tagger.tags(
            image[None], wanted.general_threshold, wanted.character_threshold
        )
        tags = list(scored)
    return {"score": score, "tags": tags, "problem": problem}
