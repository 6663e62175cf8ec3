"""Names for colours, in the vocabulary of danbooru-like tags."""

from __future__ import annotations

import numpy as np

from nurie.data.palettes import RGB

# Several anchors per name: a name covers a region of CIELAB, not a ball around one point.
_ANCHORS: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("black", (15, 15, 18)),
    ("black", (42, 40, 48)),
    ("grey", (105, 105, 108)),
    ("grey", (160, 160, 165)),
    ("white", (248, 248, 248)),
    ("white", (225, 228, 232)),
    ("brown", (110, 65, 35)),
    ("brown", (70, 45, 30)),
    ("brown", (150, 105, 70)),
    ("yellow", (235, 205, 120)),
    ("yellow", (205, 170, 100)),
    ("yellow", (250, 230, 40)),
    ("orange", (240, 140, 40)),
    ("orange", (205, 105, 30)),
    ("red", (215, 30, 35)),
    ("red", (140, 20, 30)),
    ("pink", (250, 160, 190)),
    ("pink", (240, 90, 160)),
    ("purple", (130, 60, 170)),
    ("purple", (75, 35, 100)),
    ("purple", (185, 150, 220)),
    ("blue", (45, 75, 200)),
    ("blue", (25, 35, 95)),
    ("blue", (120, 160, 235)),
    ("light_blue", (175, 215, 245)),
    ("aqua", (60, 205, 215)),
    ("green", (50, 150, 65)),
    ("green", (30, 75, 40)),
    ("green", (140, 205, 110)),
)


def srgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB (0..1, last axis 3) to CIELAB under D65; L is 0..100.

    Args:
        rgb: Colours, [..., 3].

    Returns:
        Lab colours, float64 [..., 3].
    """
    return linear_to_lab(srgb_to_linear(np.asarray(rgb, np.float64)))


def srgb_to_linear(rgb: np.ndarray) -> np.ndarray:
    """Undo the gamma of sRGB values in 0..1, each by itself; light in 0..1."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def linear_to_lab(linear: np.ndarray) -> np.ndarray:
    """CIELAB of light [..., 3] as ``srgb_to_linear`` gives it."""
    to_xyz = np.array(
        [
            (0.4124564, 0.3575761, 0.1804375),
            (0.2126729, 0.7151522, 0.0721750),
            (0.0193339, 0.1191920, 0.9503041),
        ]
    )
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


_ANCHOR_LAB = srgb_to_lab(np.array([colour for _, colour in _ANCHORS]) / 255)
COLOUR_NAMES: tuple[str, ...] = tuple(dict.fromkeys(name for name, _ in _ANCHORS))
"""Every name that :func:`colour_name` can return, but for hair's ``blonde``."""

_SKIN_LIGHTNESS = (("dark_skin", 45.0), ("brown_skin", 68.0), ("tan_skin", 82.0))


def colour_name(colour: RGB, *, of_hair: bool = False) -> str:
    """Return the name nearest to an sRGB colour (0..1 a channel) in CIELAB.

    Yellow hair is called blonde, as people do; nothing else is.
    """
    distance = np.linalg.norm(_ANCHOR_LAB - srgb_to_lab(np.asarray(colour)), axis=1)
    name = _ANCHORS[int(distance.argmin())][0]
    return "blonde" if of_hair and name == "yellow" else name


def skin_name(colour: RGB) -> str:
    """Return a skin tag: a lightness for natural hues, else ``<colour>_skin``."""
    lightness, a, b = srgb_to_lab(np.asarray(colour))
    natural = a > -3 and b > 2 and np.hypot(a, b) < 50 and b > 0.35 * a
    if not natural:
        return f"{colour_name(colour)}_skin"
    for name, limit in _SKIN_LIGHTNESS:
        if lightness < limit:
            return name
    return "pale_skin"
