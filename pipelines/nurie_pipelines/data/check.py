"""Opening every picture of a collection once, before anything is made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Self

import cv2
import numpy as np
import pyarrow as pa
import ray
from PIL import Image

from nurie.config.data import DataConfig, PicturesSource
from nurie.data.colour_histogram import colour_histogram
from nurie.data.lines import xdog
from nurie.data.near_duplicates import difference_hash
from nurie.data.picture_models import PictureScore
from nurie.data.schema import Row
from nurie.data.tagger import Tagger
from nurie.inference.images import ImageError, decode_image, to_rgb
from nurie_pipelines.cluster import connect
from nurie_pipelines.data.collections import Item, collection_root
from nurie_pipelines.data.collections.storage import StorageError, read_bytes

MAX_PIXELS = 64_000_000
ITEMS_PER_BLOCK = 64
MIN_INK, MAX_INK = 0.002, 0.6
"""Share of a picture's sketch that is line, at least and at most."""
_THUMBNAIL = 256
_RESULT = pa.schema(
    [
        ("number", pa.int64()),
        ("sha256", pa.string()),
        ("hash", pa.binary()),
        ("colours", pa.list_(pa.float32())),
        ("score", pa.float64()),
        ("tags", pa.list_(pa.string())),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("problem", pa.string()),
    ]
)


@dataclass(frozen=True)
class CheckedItem:
    """An item after the check.

    Attributes:
        item: The item, with its problem if it cannot be used, and the tagger's tags if its layout
            has none.
        opened: Whether it was looked at; those with an earlier problem are not.
        sha256: Digest of the picture and of what belongs to it; empty if it could not be read.
        hash: Difference hash of the picture; empty if it was not decoded.
        size: Width and height of the picture, in pixels.
        colours: Its ``nurie.data.colour_histogram``.
        score: Its aesthetic score, the layout's or the model's (None: it has none).
    """

    item: Item
    opened: bool = False
    sha256: str = ""
    hash: bytes = b""
    size: tuple[int, int] = (0, 0)
    colours: tuple[float, ...] = ()
    score: float | None = None

    @classmethod
    def of(cls, item: Item, row: Row) -> Self:
        """An item that was opened, with what ``check_rows`` found."""
        return cls(
            replace(item, problem=row["problem"], tags=tuple(row["tags"])),
            True,
            row["sha256"],
            row["hash"],
            (row["width"], row["height"]),
            tuple(row["colours"]),
            row["score"],
        )

    @property
    def problem(self) -> str:
        """Why it cannot be used (empty: it can)."""
        return self.item.problem


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
    items: list[Item],
    tell: Callable[[int], None] = lambda count: None,
) -> list[CheckedItem]:
    """Open every picture and what belongs to it, in parallel: digest it, see whether it decodes.

    Args:
        config: The build: tasks at a time, actors and GPUs for models.
        source: The collection.
        items: Its items; those with a problem are not opened.
        tell: Called with the number of items that were opened since.

    Returns:
        One entry per item, in their order.

    Raises:
        nurie.data.picture_models.PictureModelError: If a model that scores cannot be used.
        nurie.data.tagger_graph.TaggerError: If the tagger cannot be used.
    """
    scored = bool(Scorers.of(source))  # a wrong model is an error now, not in a worker
    named = [_with_utf8_name(item) for item in items]
    rows = [
        {"number": number, **asdict(item)} for number, item in enumerate(named) if not item.problem
    ]
    found: dict[int, Row] = {}
    if rows:
        connect(config.num_cpus)
        num_blocks = -(-len(rows) // ITEMS_PER_BLOCK)
        dataset = ray.data.from_items(rows, override_num_blocks=num_blocks)
        if scored:
            actors = min(config.num_model_actors, num_blocks)
            dataset = dataset.map_batches(
                _CheckWithModels,
                fn_constructor_args=(source,),
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=actors),
                num_gpus=config.model_gpus,
            )
        else:
            dataset = dataset.map_batches(
                partial(check_rows, source=source, scorers=Scorers()),
                batch_format="pyarrow",
                compute=ray.data.TaskPoolStrategy(size=min(config.num_cpus, num_blocks)),
            )
        for row in dataset.iter_rows():
            found[row["number"]] = row
            tell(1)
    return [
        CheckedItem(item) if number not in found else CheckedItem.of(item, found[number])
        for number, item in enumerate(named)
    ]


class _CheckWithModels:
    """Ray actor that keeps the models open."""

    def __init__(self, source: PicturesSource) -> None:
        self._source, self._scorers = source, Scorers.of(source)

    def __call__(self, rows: pa.Table) -> pa.Table:
        return check_rows(rows, self._source, self._scorers)


def check_rows(rows: pa.Table, source: PicturesSource, scorers: Scorers) -> pa.Table:
    """What opening finds, one row per item.

    Args:
        rows: ``number`` and the fields of ``Item``.
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
    found: Row = {"sha256": "", "hash": b"", "width": 0, "height": 0, "problem": ""}
    found |= {"colours": [], "score": row["aesthetic_score"], "tags": row["tags"]}
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
    score, tags = row["aesthetic_score"], row["tags"]
    if scorers.aesthetic is not None and score is None:
        score = scorers.aesthetic(image)
        if minimum is not None and score < minimum:
            problem = f"aesthetic_score: {score:g} is below {minimum:g}"
    if scorers.safety is not None and source.safety_model is not None and not problem:
        unsafe, maximum = scorers.safety(image), source.safety_model.max_score
        if unsafe > maximum:
            problem = f"unsafe: {unsafe:g} is above {maximum:g}"
    if scorers.tagger is not None and source.tagger is not None and not (tags or problem):
        wanted = source.tagger
        (scored,) = scorers.tagger.tags(
            image[None], wanted.general_threshold, wanted.character_threshold
        )
        tags = list(scored)
    return {"score": score, "tags": tags, "problem": problem}


def _with_utf8_name(item: Item) -> Item:
    try:
        item.name.encode()
    except UnicodeEncodeError:
        name = item.name.encode(errors="surrogateescape").decode(errors="replace")
        return Item(name, "", problem="bad_name: the file's name is not UTF-8")
    return item
