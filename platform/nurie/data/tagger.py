"""Tagger: semantic tokens and tags of pictures, by ONNX Runtime (method section 3)."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnxruntime.capi import (
    onnxruntime_pybind11_state as ort_errors,  # pyright: ignore[reportAttributeAccessIssue]
)
from PIL import Image

from nurie.data.onnx_session import open_session
from nurie.data.tagger_graph import (
    FeatureMap,
    TaggerError,
    expose_feature_map,
    make_batch_symbolic,
)

MODEL_FILE = "model.onnx"
TAGS_FILE = "selected_tags.csv"

_GENERAL, _CHARACTER = 0, 4
_RUN_ERRORS = (ort_errors.RuntimeException, ort_errors.Fail, ort_errors.InvalidArgument)


@dataclass(frozen=True)
class Tag:
    """One score of a tagger: its name and its danbooru category (0 general, 4 character, ...)."""

    name: str
    category: int


class Tagger:
    """A tagger as published: BGR pictures in, tag scores out.

    Its feature map before the global pooling is made an output too.
    """

    def __init__(self, model: onnx.ModelProto, tags: list[Tag], num_threads: int = 1) -> None:
        """Prepare a session.

        Args:
            model: The graph; its input is B x S x S x 3, its first output are the scores.
            tags: What each score stands for.
            num_threads: Threads of one run.

        Raises:
            TaggerError: If the graph is not a tagger's, or has more or fewer scores than tags.
        """
        self.tag_list = tags
        self._folder: Path | None = None
        self.image_size = _image_size(model)
        self._map: FeatureMap = expose_feature_map(model)
        self._input, self._scores = model.graph.input[0].name, model.graph.output[0].name
        _check_number_of_scores(model, tags)
        fixed = model.SerializeToString()
        was_fixed = make_batch_symbolic(model)
        self._session = open_session(model.SerializeToString(), num_threads)
        self._one_by_one = was_fixed and not self._takes_batches()
        if self._one_by_one:
            self._session = open_session(fixed, num_threads)

    @classmethod
    def from_folder(cls, folder: str | Path, num_threads: int = 1) -> Tagger:
        """Open ``model.onnx`` and ``selected_tags.csv`` of a folder.

        Raises:
            TaggerError: If a file is missing or is not a tagger's.
        """
        folder = Path(folder)
        for name in (MODEL_FILE, TAGS_FILE):
            if not (folder / name).is_file():
                raise TaggerError(
                    f"no {name} in {folder}: a tagger's folder holds {MODEL_FILE} and {TAGS_FILE}, "
                    "as its publisher names them"
                )
        try:
            model = onnx.load(folder / MODEL_FILE)
        except DecodeError as error:
            raise TaggerError(f"{folder / MODEL_FILE}: not an ONNX model ({error})") from error
        tagger = cls(model, _read_tags(folder / TAGS_FILE), num_threads)
        tagger._folder = folder
        return tagger

    def save(self, folder: str | Path) -> None:
        """Copy the files as published, not the prepared graph.

        Raises:
            TaggerError: If this tagger does not come from a folder.
        """
        if self._folder is None:
            raise TaggerError("only a tagger opened with from_folder can be saved")
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in (MODEL_FILE, TAGS_FILE):
            source, target = self._folder / name, Path(folder) / name
            if source.resolve() != target.resolve():
                shutil.copyfile(source, target)

    @property
    def providers(self) -> list[str]:
        """What the session really runs on."""
        return list(self._session.get_providers())

    def tokens(self, images: np.ndarray) -> np.ndarray:
        """Return the feature map before the pooling as tokens.

        Args:
            images: sRGB pictures, uint8 [B, H, W, 3], or with straight alpha [B, H, W, 4].

        Returns:
            float32 [B, cells, channels], cells in row-major order.
        """
        feature_map = self._run(self._map.tensor, images)
        if self._map.layout == "channels_first":
            feature_map = np.moveaxis(feature_map, 1, -1)
        batch, channels = feature_map.shape[0], feature_map.shape[-1]
        return np.ascontiguousarray(feature_map.reshape(batch, -1, channels), np.float32)

    def tags(
        self, images: np.ndarray, threshold: float, character_threshold: float
    ) -> list[dict[str, float]]:
        """Name what the pictures show.

        Args:
            images: As for :meth:`tokens`.
            threshold: Lowest score of a general tag.
            character_threshold: Lowest score of a character's name.

        Returns:
            Scores by tag, per picture, highest first.
        """
        limits = {_GENERAL: threshold, _CHARACTER: character_threshold}
        return [
            {
                tag.name: float(score)
                for score, tag in sorted(
                    zip(scores, self.tag_list, strict=True), key=lambda pair: -pair[0]
                )
                if score >= limits.get(tag.category, np.inf)
            }
            for scores in self._run(self._scores, images)
        ]

    def _run(self, output: str, images: np.ndarray) -> np.ndarray:
        pixels = preprocess(images, self.image_size)
        parts = np.split(pixels, len(pixels)) if self._one_by_one else [pixels]
        results = [
            np.asarray(self._session.run([output], {self._input: part})[0]) for part in parts
        ]
        return results[0] if len(results) == 1 else np.concatenate(results)

    def _takes_batches(self) -> bool:
        pair = np.zeros((2, self.image_size, self.image_size, 3), np.float32)
        try:
            outputs = self._session.run([self._scores, self._map.tensor], {self._input: pair})
        except _RUN_ERRORS:
            return False
        return all(np.asarray(output).shape[0] == 2 for output in outputs)


def preprocess(images: np.ndarray, size: int) -> np.ndarray:
    """Prepare pictures as the taggers' publisher does.

    Transparency becomes white, the shorter side is padded with white to a square, then resized
    bicubically; channels are turned to BGR and stay in 0..255.

    Args:
        images: uint8 [B, H, W, 3 or 4], sRGB with or without straight alpha.
        size: Side of the tagger's pictures.

    Returns:
        float32 [B, size, size, 3].

    Raises:
        ValueError: If the pictures are of another kind.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (3, 4):
        raise ValueError(
            f"images must be uint8 [B, H, W, 3 or 4], got {images.dtype} {images.shape}"
        )
    return np.stack([_square_bgr(image, size) for image in images])


def _square_bgr(image: np.ndarray, size: int) -> np.ndarray:
    picture = Image.fromarray(image)
    side = max(picture.size)
    place = ((side - picture.width) // 2, (side - picture.height) // 2)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(picture, place, picture if picture.mode == "RGBA" else None)
    if side != size:
        square = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(square, np.float32)[..., ::-1]


def _image_size(model: onnx.ModelProto) -> int:
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    sizes = [dimension.dim_value for dimension in dimensions[1:]]
    if len(sizes) != 3 or sizes[0] != sizes[1] or sizes[0] < 1 or sizes[2] != 3:
        raise TaggerError(
            f"the tagger's input '{model.graph.input[0].name}' must be batch x side x side x 3, "
            f"got batch x {' x '.join(str(size) for size in sizes)}"
        )
    return sizes[0]


def _check_number_of_scores(model: onnx.ModelProto, tags: list[Tag]) -> None:
    dimensions = model.graph.output[0].type.tensor_type.shape.dim
    scores = dimensions[-1].dim_value if dimensions else 0
    if scores and scores != len(tags):
        raise TaggerError(
            f"the tagger gives {scores} scores, its list of tags has {len(tags)}: {MODEL_FILE} and "
            f"{TAGS_FILE} must be of one publication"
        )


def _read_tags(file: Path) -> list[Tag]:
    with open(file, newline="", encoding="utf-8") as rows:
        reader = csv.DictReader(rows)
        if not {"name", "category"} <= set(reader.fieldnames or ()):
            raise TaggerError(f"{file} must have the columns name and category")
        try:
            return [Tag(row["name"], int(row["category"])) for row in reader]
        except ValueError as error:
            raise TaggerError(f"{file}, line {reader.line_num}: category: {error}") from error
