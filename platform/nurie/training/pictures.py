"""Endless seeded training pictures for the small components."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from nurie.data.characters import ROLES, Character, load_characters
from nurie.data.examples import composite, load_backgrounds, load_sylvie
from nurie.data.lines import LINE_STYLES, make_sketch
from nurie.data.palettes import Palette, random_palette
from nurie.data.placement import place_at_random
from nurie.data.recolour import Rendered, recolour
from nurie.data.tags import all_tags, tags_for
from nurie.training.procedural import procedural_picture

INK_CLASS = len(ROLES) + 1
"""Pixel class of ink; 0 is unknown or outside, 1 + i is the role i of ``ROLES``."""
NUM_CLASSES = INK_CLASS + 1

_PROCEDURAL_SHARE = 0.15
_ART_SHARE = 0.08
_SKETCH_SHARE = 0.04
_SHADING_PROBABILITY = 0.5
_INK_THRESHOLD = 0.5
_MIN_VISIBLE_PIXELS = 4
_TAG_PLACE = {tag: place for place, tag in enumerate(all_tags())}


@dataclass(frozen=True, eq=False)
class TrainingPicture:
    """A picture and what is known about it.

    Attributes:
        image: sRGB, uint8 [S, S, 3].
        classes: Class of every pixel, uint8 [S, S]; all 0 where nothing is known.
        colours: Palette colour of each role of ``ROLES``, float32 [roles, 3], 0..1; NaN for roles
            that cannot be seen.
        tags: 1 for each tag of ``all_tags()`` that applies, float32 [tags]; NaN where unknown.
    """

    image: np.ndarray
    classes: np.ndarray
    colours: np.ndarray
    tags: np.ndarray


class PicturePool:
    """A store of training pictures, a few of which are renewed every time it is asked.

    Drawing a picture costs more than what a small network learns from it at first sight, and the
    trainings cut or turn it in another way every time.
    """

    def __init__(self, size: int, seed: int, capacity: int = 1024, renewed: int = 3) -> None:
        """Fill the store with pictures of the training split.

        Args:
            size: Side of the pictures in pixels.
            seed: Seed of the pictures and of the choice among them.
            capacity: Pictures in the store.
            renewed: Pictures replaced every time.
        """
        self._stream = training_pictures(seed, size)
        self._rng = np.random.default_rng([seed, capacity])
        self._store = [next(self._stream) for _ in range(capacity)]
        self._renewed = renewed
        self._oldest = 0

    def choose(self, count: int) -> list[TrainingPicture]:
        """Return random pictures of the store."""
        for _ in range(self._renewed):
            self._store[self._oldest] = next(self._stream)
            self._oldest = (self._oldest + 1) % len(self._store)
        return [self._store[i] for i in self._rng.integers(0, len(self._store), count)]

    def first(self, count: int) -> list[TrainingPicture]:
        """Return the first pictures of the store, each once."""
        return self._store[:count]


def training_pictures(seed: int, size: int) -> Iterator[TrainingPicture]:
    """Yield pictures without end: mostly coloured characters, also sketches, art and shapes.

    Args:
        seed: The same seed gives the same pictures.
        size: Side in pixels.
    """
    rng = np.random.default_rng(seed)
    characters = [c for c in load_characters() if c.split == "train"]
    art = _art()
    while True:
        kind = rng.random()
        if kind < _PROCEDURAL_SHARE:
            yield _unknown(procedural_picture(rng, size))
        elif kind < _PROCEDURAL_SHARE + _ART_SHARE:
            yield _unknown(_art_cut(art[rng.integers(len(art))], rng, size))
        else:
            is_sketch = kind > 1 - _SKETCH_SHARE
            yield _drawn(characters[rng.integers(len(characters))], rng, size, is_sketch)


def held_out_pictures(count: int, size: int, seed: int) -> list[TrainingPicture]:
    """Colour characters of the test split, which no training picture shows, as they stand."""
    rng = np.random.default_rng(seed)
    characters = [c for c in load_characters() if c.split == "test"]
    pictures = []
    for place in rng.choice(len(characters), count):
        palette = random_palette(rng, ROLES)
        pictures.append(_known(recolour(characters[place], palette, size), palette))
    return pictures


def _drawn(
    character: Character, rng: np.random.Generator, size: int, is_sketch: bool
) -> TrainingPicture:
    placed, palette = place_at_random(character, rng), random_palette(rng, ROLES)
    rendered = recolour(placed, palette, size, shading_probability=_SHADING_PROBABILITY, rng=rng)
    if not is_sketch:
        return _known(rendered, palette)
    paper = make_sketch(rendered, LINE_STYLES[rng.integers(len(LINE_STYLES))], rng)
    return _unknown(np.repeat((paper * 255).round().astype(np.uint8)[..., None], 3, axis=2))


def _known(rendered: Rendered, palette: Palette) -> TrainingPicture:
    classes = np.where(rendered.ink > _INK_THRESHOLD, INK_CLASS, rendered.labels + 1)
    colours = np.array([palette[role] for role in ROLES], np.float32)
    if "background2" in palette:
        colours[0] = (colours[0] + np.asarray(palette["background2"], np.float32)) / 2
    visible = np.bincount(classes.ravel(), minlength=NUM_CLASSES)[1:INK_CLASS]
    colours[visible < _MIN_VISIBLE_PIXELS] = np.nan
    tags = np.zeros(len(_TAG_PLACE), np.float32)
    tags[[_TAG_PLACE[tag] for tag in tags_for(rendered.character, palette)]] = 1
    return TrainingPicture(rendered.image, classes.astype(np.uint8), colours, tags)


def _unknown(image: np.ndarray) -> TrainingPicture:
    return TrainingPicture(
        image=image,
        classes=np.zeros(image.shape[:2], np.uint8),
        colours=np.full((len(ROLES), 3), np.nan, np.float32),
        tags=np.full(len(_TAG_PLACE), np.nan, np.float32),
    )


def _art() -> list[np.ndarray]:
    """The bundled artwork: figures over every background, and the backgrounds themselves."""
    backgrounds = list(load_backgrounds().values())
    figures = [
        composite(figure, behind)
        for figure in load_sylvie().values()
        for behind in (None, *backgrounds)
    ]
    return figures + backgrounds


def _art_cut(picture: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """A random square of a picture, scaled to ``size``, mirrored half of the time."""
    height, width = picture.shape[:2]
    side = int(rng.integers(min(size, height, width), min(height, width) + 1))
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    piece = picture[top : top + side, left : left + side]
    small = cv2.resize(piece, (size, size), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small[:, ::-1]) if rng.random() < 0.5 else small
