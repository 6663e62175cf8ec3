"""Danbooru-like tags of a coloured character, from what is known about it."""

from __future__ import annotations

from nurie.data.characters import Character
from nurie.data.colour_names import COLOUR_NAMES, colour_name, skin_name
from nurie.data.palettes import Palette

_FACT_TAGS = {
    "has_glasses": "glasses",
    "has_sunglasses": "sunglasses",
    "has_earrings": "earrings",
    "has_beard": "beard",
    "has_mustache": "mustache",
    "has_freckles": "freckles",
    "has_blush": "blush",
    "has_accessory": "hair_ornament",
    "open_mouth": "open_mouth",
}
_SKIN_TONE_TAGS = ("pale_skin", "tan_skin", "brown_skin", "dark_skin")


def tags_for(character: Character, palette: Palette) -> list[str]:
    """List the tags of ``character`` coloured with ``palette``, sorted.

    Geometry comes from the attributes, colours from the palette; a colour tag appears only for
    what can be seen.
    """
    tags = ["solo", f"{character.attributes['hair_length']}_hair"]
    tags += [tag for fact, tag in _FACT_TAGS.items() if character.attributes[fact]]
    tags += [f"{colour_name(palette['hair'], of_hair=True)}_hair", skin_name(palette["skin"])]
    if character.attributes["eyes_visible"]:
        tags.append(f"{colour_name(palette['eyes'])}_eyes")
    if "background2" in palette:
        tags.append("gradient_background")
    else:
        tags.append(f"{colour_name(palette['background'])}_background")
    return sorted(set(tags))


def all_tags() -> list[str]:
    """List every tag that :func:`tags_for` can return, sorted: the tagger's vocabulary."""
    parts = ("hair", "eyes", "background", "skin")
    coloured = [f"{colour}_{part}" for colour in COLOUR_NAMES for part in parts]
    fixed = [
        "solo",
        "blonde_hair",
        "long_hair",
        "short_hair",
        "gradient_background",
        *_FACT_TAGS.values(),
    ]
    return sorted({*coloured, *fixed, *_SKIN_TONE_TAGS} - {"yellow_hair"})
