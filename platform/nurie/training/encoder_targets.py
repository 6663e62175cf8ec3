"""What the small encoders learn to know about every cell of a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nurie.config.data import ReferenceAugmentation
from nurie.data.augment import draw_augmentation
from nurie.training.pictures import INK_CLASS, NUM_CLASSES, TrainingPicture

_AUGMENTED_SHARE = 0.7
_STRIDE = 2
_AUGMENTATION = ReferenceAugmentation()


@dataclass(frozen=True, eq=False)
class EncoderBatch:
    """Pictures and targets; NaN where a target is unknown, colours in [-1, 1].

    Attributes:
        images: sRGB, uint8 [B, S, S, 3].
        shares: Share of each pixel class in each cell, B x cells x classes.
        cell_colours: Mean colour of each cell, B x cells x 3.
        role_colours: Mean colour, in each cell, of the role that covers most of it, B x cells x 3.
        palettes: Colour of each role in the whole picture, B x roles x 3.
        tags: 1 for the tags that apply, B x tags.
    """

    images: np.ndarray
    shares: torch.Tensor
    cell_colours: torch.Tensor
    role_colours: torch.Tensor
    palettes: torch.Tensor
    tags: torch.Tensor


def encoder_batch(
    pictures: list[TrainingPicture], side: int, rng: np.random.Generator | None
) -> EncoderBatch:
    """Collect pictures and compute their targets on a grid.

    Args:
        pictures: The pictures.
        side: Cells per side of the grid.
        rng: Source of the augmentation of picture and targets alike; None for no augmentation.
    """
    pairs = [(p.image, p.classes) if rng is None else _augment(p, rng) for p in pictures]
    images = np.stack([image for image, _ in pairs])
    classes = np.stack([classes for _, classes in pairs])
    # Every second pixel is enough to know what a cell holds.
    pixels = images[:, ::_STRIDE, ::_STRIDE].astype(np.float32) / 127.5 - 1
    thin = classes[:, ::_STRIDE, ::_STRIDE]
    shares, role_colours = _cells(thin, pixels, side)
    palettes = np.stack([p.colours for p in pictures]) * 2 - 1
    palettes[shares.sum(axis=1)[:, 1:INK_CLASS] == 0] = np.nan  # erased, or shifted away
    tags = np.stack([p.tags for p in pictures])
    shares[np.isnan(tags[:, 0])] = np.nan
    edge = pixels.shape[1] // side
    blocks = pixels.reshape(len(pictures), side, edge, side, edge, 3)
    return EncoderBatch(
        images=images,
        shares=torch.from_numpy(shares),
        cell_colours=torch.from_numpy(blocks.mean((2, 4)).reshape(len(pictures), -1, 3)),
        role_colours=torch.from_numpy(role_colours),
        palettes=torch.from_numpy(palettes),
        tags=torch.from_numpy(tags),
    )


def _augment(picture: TrainingPicture, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if rng.random() >= _AUGMENTED_SHARE:
        return picture.image, picture.classes
    augmentation = draw_augmentation(rng, _AUGMENTATION, *picture.classes.shape)
    return augmentation.apply(picture.image), augmentation.apply_to_mask(picture.classes)


def _cells(classes: np.ndarray, pixels: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Class shares, [B, cells, classes], and colour of the main role, [B, cells, 3] (or NaN)."""
    count, size = classes.shape[:2]
    place = np.arange(size) * side // size
    cell = place[:, None] * side + place[None, :]
    key = (np.arange(count)[:, None, None] * side**2 + cell) * NUM_CLASSES + classes
    shape = (count, side**2, NUM_CLASSES)
    length = count * side**2 * NUM_CLASSES
    numbers = np.bincount(key.ravel(), minlength=length).reshape(shape)
    sums = np.stack(
        [
            np.bincount(key.ravel(), weights=pixels[..., c].ravel(), minlength=length)
            for c in range(3)
        ],
        axis=-1,
    ).reshape(*shape, 3)
    main = numbers[..., 1:INK_CLASS].argmax(-1)[..., None] + 1
    main_number = np.take_along_axis(numbers, main, -1)
    main_sum = np.take_along_axis(sums, main[..., None], 2)[:, :, 0]
    with np.errstate(invalid="ignore"):
        colours = np.where(main_number > 0, main_sum / main_number, np.nan)
    shares = numbers / numbers.sum(-1, keepdims=True)
    return shares.astype(np.float32), colours.astype(np.float32)
