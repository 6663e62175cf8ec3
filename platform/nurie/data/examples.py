"""Ready examples: Sylvie (real anime, MIT) and pairs of unseen characters with exact truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from nurie.data.assets import find_assets
from nurie.data.characters import Character, load_characters
from nurie.data.lines import make_sketch
from nurie.data.palettes import Palette, random_palette
from nurie.data.recolour import DEFAULT_SIZE, recolour

_BUST_SHARE = 0.44


@dataclass(frozen=True, eq=False)
class ExamplePair:
    """A sketch, a reference of another character, and what the result should be.

    Attributes:
        sketch_id: Character that the sketch shows.
        reference_id: Another character of the same style, in the same palette.
        palette: The colours of reference and truth.
        sketch: uint8 [S, S], dark lines on white.
        reference: uint8 [S, S, 3].
        truth: The sketch's character in ``palette``, uint8 [S, S, 3].
    """

    sketch_id: str
    reference_id: str
    palette: Palette
    sketch: np.ndarray
    reference: np.ndarray
    truth: np.ndarray


def example_pairs(
    n: int,
    seed: int,
    *,
    size: int = DEFAULT_SIZE,
    style: str = "ink",
    path: str | Path | None = None,
) -> list[ExamplePair]:
    """Draw unseen characters with a cross-character reference and the exact truth.

    Args:
        n: Number of pairs; all sketches show different characters.
        seed: Chooses characters and palettes.
        size: Side of the pictures in pixels.
        style: Line style of the sketches.
        path: Character set (None: the built-in one).

    Returns:
        ``n`` pairs, all from the test split (part variants that no training picture has).

    Raises:
        ValueError: If there are fewer test characters than ``n``.
    """
    unseen = [character for character in load_characters(path) if character.split == "test"]
    if not 1 <= n <= len(unseen):
        raise ValueError(f"n must be 1..{len(unseen)}, the number of test characters; got {n}")
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(unseen), n, replace=False)
    return [_pair(unseen[index], unseen, size, style, rng) for index in chosen]


def _pair(
    subject: Character, pool: list[Character], size: int, style: str, rng: np.random.Generator
) -> ExamplePair:
    palette = random_palette(rng, subject.roles)
    others = [
        other
        for other in pool
        if other.style == subject.style and other.attributes["hair"] != subject.attributes["hair"]
    ]
    reference = others[rng.integers(len(others))]
    truth = recolour(subject, palette, size)
    sketch = make_sketch(truth, style, rng)
    return ExamplePair(
        sketch_id=subject.character_id,
        reference_id=reference.character_id,
        palette=palette,
        sketch=(sketch * 255).round().astype(np.uint8),
        reference=recolour(reference, palette, size).image,
        truth=truth.image,
    )


def load_sylvie(folder: str | Path | None = None) -> dict[str, np.ndarray]:
    """Load Sylvie's sprites: ``{outfit}_{expression}`` to straight-alpha RGBA, uint8 [H, W, 4].

    Outfits are ``green`` and ``blue``; expressions ``giggle``, ``normal``, ``smile`` and
    ``surprised``.
    """
    files = sorted(_sylvie_folder(folder).glob("*_*.png"))
    return {file.stem: np.array(Image.open(file).convert("RGBA")) for file in files}


def load_backgrounds(folder: str | Path | None = None) -> dict[str, np.ndarray]:
    """Load the backgrounds: name to sRGB, uint8 [270, 480, 3]."""
    files = sorted(_sylvie_folder(folder).glob("background_*.jpg"))
    names = [file.stem.removeprefix("background_") for file in files]
    return {
        name: np.array(Image.open(file).convert("RGB"))
        for name, file in zip(names, files, strict=True)
    }


def _sylvie_folder(folder: str | Path | None) -> Path:
    return find_assets("examples") / "sylvie" if folder is None else Path(folder)


def crop_bust(sprite: np.ndarray) -> np.ndarray:
    """Cut head and shoulders out of a standing figure.

    Args:
        sprite: RGBA, uint8 [H, W, 4].

    Returns:
        Square RGBA cut, side 44 % of the figure's height, centred on the head; transparent where
        it reaches beyond the sprite.

    Raises:
        ValueError: If the sprite is empty or not RGBA.
    """
    if sprite.ndim != 3 or sprite.shape[2] != 4 or not sprite[..., 3].any():
        raise ValueError(f"sprite must be a visible RGBA picture [H, W, 4], got {sprite.shape}")
    rows = np.flatnonzero(sprite[..., 3].max(axis=1) > 8)
    side = round(_BUST_SHARE * (rows[-1] - rows[0] + 1))
    margin = side // 16
    head = sprite[rows[0] : rows[0] + side // 2, :, 3].sum(axis=0, dtype=np.float64)
    centre = round(float((head * np.arange(head.size)).sum() / head.sum()))
    padded = np.pad(sprite, ((side, side), (side, side), (0, 0)))
    top, left = rows[0] - margin + side, centre - side // 2 + side
    return padded[top : top + side, left : left + side].copy()


def composite(sprite: np.ndarray, background: np.ndarray | None) -> np.ndarray:
    """Lay a sprite over a background (cut to the sprite's shape, centred) or over white.

    Args:
        sprite: Straight-alpha RGBA, uint8 [H, W, 4].
        background: sRGB, uint8 [h, w, 3], or None for white; enlarged if it is smaller.

    Returns:
        sRGB, uint8 [H, W, 3].
    """
    height, width = sprite.shape[:2]
    behind = np.full((height, width, 3), 255, np.uint8)
    if background is not None:
        behind = _cover(background, height, width)
    alpha = sprite[..., 3:].astype(np.float32) / np.float32(255)
    mixed = sprite[..., :3] * alpha + behind * (1 - alpha)
    return (mixed + 0.5).astype(np.uint8)


def _cover(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale and cut a picture so that it fills [height, width] without distortion."""
    scale = max(height / picture.shape[0], width / picture.shape[1])
    size = (
        max(width, round(picture.shape[1] * scale)),
        max(height, round(picture.shape[0] * scale)),
    )
    large = np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return large[top : top + height, left : left + width]
