"""One picture of a collection, as its layout lists it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One picture with what is known of it before it is opened.

    Attributes:
        name: What people call it; unique in the collection.
        picture: Locator of the picture (see ``nurie_pipelines.data.collections.storage``).
        sketch: Locator of a sketch that belongs to it.
        mask: Locator of a foreground mask that belongs to it.
        tags: Tags, or the comma-separated parts of a caption.
        aesthetic_score: The layout's own score (None: it has none).
        group: Pictures of one group are never each other's mismatched reference.
        split: ``train`` or ``test`` (None: by the hash of the name).
        problem: Why it is left out, if that is known already (empty: it is not).
    """

    name: str
    picture: str
    sketch: str | None = None
    mask: str | None = None
    tags: tuple[str, ...] = ()
    aesthetic_score: float | None = None
    group: str | None = None
    split: str | None = None
    problem: str = ""


def split_tags(text: str) -> tuple[str, ...]:
    """The tags of a comma-separated caption."""
    return tuple(tag.strip() for tag in text.split(",") if tag.strip())
