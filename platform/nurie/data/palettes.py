"""Random palettes: one colour per role, harmonious enough to look drawn, varied enough to learn."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterable

import numpy as np

RGB = tuple[float, float, float]
Palette = dict[str, RGB]
"""Role name to sRGB colour, each channel 0..1; also ``ink``, and ``background2`` for gradients."""

_WHITE_SHARE = 0.20
_GRADIENT_SHARE = 0.15
_FANTASY_SKIN_SHARE = 0.10

# Pale to dark: anchors of a straight path through natural skin tones.
_SKIN_TONES = np.array(
    [
        (1.00, 0.92, 0.87),
        (0.98, 0.85, 0.75),
        (0.93, 0.74, 0.58),
        (0.80, 0.58, 0.42),
        (0.60, 0.40, 0.27),
        (0.42, 0.27, 0.18),
        (0.27, 0.17, 0.12),
    ]
)


def random_palette(rng: np.random.Generator, roles: Iterable[str]) -> Palette:
    """Draw a colour for every role.

    The whole palette is drawn whatever roles are asked for, so one seed gives two characters with
    different roles the same colours.

    Args:
        rng: Source of randomness.
        roles: Role names to return; a role without a recipe gets an arbitrary colour.

    Returns:
        The colours of ``roles`` plus ``ink`` and, in 15 % of palettes, ``background2``.
    """
    colours = _draw_all(rng)
    spare = _vivid(rng)
    wanted = [*roles, "ink", *(["background2"] if "background2" in colours else [])]
    return {role: colours.get(role, spare) for role in wanted}


def _draw_all(rng: np.random.Generator) -> Palette:
    hair = _hair(rng)
    skin = _skin(rng)
    accent = _vivid(rng)
    colours: Palette = {
        "hair": hair,
        "skin": skin,
        "eyes": _eyes(rng),
        "sclera": _tint((1.0, 1.0, 1.0), accent, rng.uniform(0, 0.06)),
        "eyebrows": _shade(hair, rng.uniform(0.35, 0.8)),
        "lips": _lips(rng, skin),
        "teeth": (1.0, 1.0, rng.uniform(0.94, 1.0)),
        "throat": _hsv(rng.uniform(0.93, 1.02), rng.uniform(0.5, 0.9), rng.uniform(0.3, 0.6)),
        "tongue": _hsv(rng.uniform(0.93, 1.02), rng.uniform(0.3, 0.6), rng.uniform(0.75, 1.0)),
        "blush": _tint(skin, (0.92, 0.35, 0.4), rng.uniform(0.35, 0.6)),
        "freckles": _shade(skin, rng.uniform(0.5, 0.75)),
        "glasses": _vivid(rng) if rng.random() < 0.7 else _grey(rng, 0.05, 0.35),
        "earrings": _vivid(rng) if rng.random() < 0.6 else _metal(rng),
        "accessory": accent,
        "leaf": _hsv(rng.uniform(0.22, 0.45), rng.uniform(0.3, 0.8), rng.uniform(0.35, 0.85)),
        "highlight": (1.0, 1.0, 1.0),
        "ink": _ink(rng),
    }
    return colours | _background(rng)


def _hair(rng: np.random.Generator) -> RGB:
    kinds: list[tuple[float, Callable[[], RGB]]] = [
        (0.10, lambda: _hsv(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.08, 0.24))),
        (
            0.15,
            lambda: _hsv(rng.uniform(0.03, 0.09), rng.uniform(0.4, 0.8), rng.uniform(0.25, 0.6)),
        ),
        (
            0.14,
            lambda: _hsv(rng.uniform(0.09, 0.15), rng.uniform(0.3, 0.7), rng.uniform(0.75, 1.0)),
        ),
        (0.08, lambda: _grey(rng, 0.5, 0.97)),
        (0.21, lambda: _hsv(rng.random(), rng.uniform(0.2, 0.45), rng.uniform(0.8, 1.0))),
        (0.32, lambda: _hsv(rng.random(), rng.uniform(0.5, 1.0), rng.uniform(0.4, 1.0))),
    ]
    return _one_of(rng, kinds)


def _skin(rng: np.random.Generator) -> RGB:
    if rng.random() < _FANTASY_SKIN_SHARE:
        return _hsv(rng.random(), rng.uniform(0.15, 0.55), rng.uniform(0.55, 1.0))
    # The square puts a little more weight on light tones, as in drawn characters.
    place = rng.random() ** 1.3 * (len(_SKIN_TONES) - 1)
    low = int(min(place, len(_SKIN_TONES) - 2))
    tone = _SKIN_TONES[low] + (place - low) * (_SKIN_TONES[low + 1] - _SKIN_TONES[low])
    return _clip(tone + rng.normal(0, 0.02, 3))


def _eyes(rng: np.random.Generator) -> RGB:
    if rng.random() < 0.3:
        return _hsv(rng.uniform(0.03, 0.1), rng.uniform(0.4, 0.9), rng.uniform(0.15, 0.45))
    return _hsv(rng.random(), rng.uniform(0.55, 1.0), rng.uniform(0.35, 0.9))


def _lips(rng: np.random.Generator, skin: RGB) -> RGB:
    if rng.random() < 0.5:
        return _tint(_shade(skin, 0.75), (0.75, 0.1, 0.2), rng.uniform(0.2, 0.6))
    return _hsv(rng.uniform(0.9, 1.05), rng.uniform(0.5, 0.95), rng.uniform(0.4, 0.9))


def _ink(rng: np.random.Generator) -> RGB:
    if rng.random() < 0.75:
        return _grey(rng, 0.0, 0.1)
    return _hsv(rng.random(), rng.uniform(0.4, 0.9), rng.uniform(0.12, 0.35))


def _background(rng: np.random.Generator) -> Palette:
    kind = rng.random()
    if kind < _WHITE_SHARE:
        return {"background": (1.0, 1.0, 1.0)}
    first = _any_colour(rng)
    if kind < _WHITE_SHARE + _GRADIENT_SHARE:
        return {"background": first, "background2": _any_colour(rng)}
    return {"background": first}


def _any_colour(rng: np.random.Generator) -> RGB:
    kinds: list[tuple[float, Callable[[], RGB]]] = [
        (0.40, lambda: _hsv(rng.random(), rng.uniform(0.05, 0.4), rng.uniform(0.7, 1.0))),
        (0.35, lambda: _hsv(rng.random(), rng.uniform(0.4, 1.0), rng.uniform(0.5, 1.0))),
        (0.15, lambda: _hsv(rng.random(), rng.uniform(0.2, 0.9), rng.uniform(0.1, 0.5))),
        (0.10, lambda: _grey(rng, 0.05, 0.98)),
    ]
    return _one_of(rng, kinds)


def _vivid(rng: np.random.Generator) -> RGB:
    return _hsv(rng.random(), rng.uniform(0.45, 1.0), rng.uniform(0.5, 1.0))


def _metal(rng: np.random.Generator) -> RGB:
    if rng.random() < 0.6:
        return _hsv(rng.uniform(0.1, 0.15), rng.uniform(0.5, 0.85), rng.uniform(0.75, 1.0))
    return _grey(rng, 0.6, 0.9)


def _grey(rng: np.random.Generator, low: float, high: float) -> RGB:
    return _hsv(rng.random(), rng.uniform(0, 0.08), rng.uniform(low, high))


def _one_of(rng: np.random.Generator, kinds: list[tuple[float, Callable[[], RGB]]]) -> RGB:
    shares = np.array([share for share, _ in kinds])
    return kinds[rng.choice(len(kinds), p=shares / shares.sum())][1]()


def _hsv(hue: float, saturation: float, value: float) -> RGB:
    return colorsys.hsv_to_rgb(hue % 1.0, float(saturation), float(value))


def _shade(colour: RGB, factor: float) -> RGB:
    return _clip(np.asarray(colour) * factor)


def _tint(colour: RGB, towards: RGB, amount: float) -> RGB:
    return _clip(np.asarray(colour) * (1 - amount) + np.asarray(towards) * amount)


def _clip(colour: np.ndarray) -> RGB:
    red, green, blue = np.clip(colour, 0.0, 1.0)
    return (float(red), float(green), float(blue))
