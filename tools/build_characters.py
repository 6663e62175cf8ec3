"""Render the built-in character set into assets/characters (needs the extra ``generate``).

Every character is drawn large from DiceBear's vector parts with one flat id colour per role and
hard edges, then split into a label map and an averaged ink map. Part variants are chosen here,
never by DiceBear's seed, so they are known exactly, and train and test share no held-out variant.
Usage: ``python tools/build_characters.py [--out DIR] [--seed N]``.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
from dicebear import Avatar, Style
from PIL import Image

from nurie.data.characters import ROLES

SIZE = 256
INK_SUPERSAMPLING = 4
LINE_WIDTH = 2.6
MAX_UNLABELLED = 0.005
TEST_SHARE = 0.15
# Wide steps: a blend of two ids hardly ever equals a third id.
ID_STEP = 15


@dataclass(frozen=True)
class StyleRecipe:
    """How one DiceBear style maps to roles and which parts may be chosen.

    Attributes:
        count: Characters to draw.
        parts: Component name to probability of being present.
        role_of_colour: DiceBear colour name to role; None marks ink.
        role_of_fill: Role of the fills that the style fixes.
        excluded: Variants that do not decompose into flat roles.
        outlined_roles: Roles whose borders carry no ink in the style and get a drawn line.
    """

    count: int
    parts: dict[str, float]
    role_of_colour: dict[str, str | None]
    role_of_fill: dict[str, str]
    excluded: frozenset[tuple[str, str]]
    outlined_roles: tuple[str, ...]


RECIPES = {
    "lorelei": StyleRecipe(
        count=512,
        parts={
            "hair": 1,
            "head": 1,
            "eyes": 1,
            "eyebrows": 1,
            "nose": 1,
            "mouth": 1,
            "beard": 0.08,
            "earrings": 0.25,
            "freckles": 0.12,
            "glasses": 0.2,
            "hairAccessories": 0.15,
        },
        role_of_colour={
            "hair": "hair",
            "skin": "skin",
            "eyes": "eyes",
            "eyebrows": "eyebrows",
            "mouth": "lips",
            "freckles": "freckles",
            "glasses": "glasses",
            "earrings": "earrings",
            "hairAccessories": "accessory",
            "outline": None,
            "nose": None,
        },
        role_of_fill={"white": "highlight"},
        excluded=frozenset(),
        outlined_roles=("background", "hair", "skin", "accessory"),
    ),
    "adventurer": StyleRecipe(
        count=256,
        parts={
            "hair": 1,
            "head": 1,
            "eyes": 1,
            "eyebrows": 1,
            "mouth": 1,
            "details": 0.25,
            "earrings": 0.25,
            "glasses": 0.2,
        },
        role_of_colour={
            "hair": "hair",
            "skin": "skin",
            "eyes": "eyes",
            "sclera": "sclera",
            "lips": "lips",
            "teeth": "teeth",
            "throat": "throat",
            "tongue": "tongue",
            "uvula": "tongue",
            "glasses": "glasses",
            "earrings": "earrings",
            "ink": None,
        },
        role_of_fill={
            "#E67E5E": "accessory",
            "#E57E5E": "accessory",
            "#C0ACEB": "accessory",
            "#F0DF83": "accessory",
            "#A0CC59": "leaf",
            "#CA8D87": "blush",
            "#7A624E": "freckles",
            "white": "highlight",
        },
        # A translucent buzz cut, a drop of drool, and a ring whose hole is painted white.
        excluded=frozenset(
            {("hair", "short19"), ("mouth", "variant13"), ("earrings", "variant02")}
        ),
        outlined_roles=(),
    ),
}


def main() -> None:
    """Build every style and write one Parquet file each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("assets/characters"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in RECIPES:
        rows = build_style(name, arguments.seed)
        path = arguments.out / f"{name}.parquet"
        write_rows(rows, path)
        test = sum(row["split"] == "test" for row in rows)
        print(f"{path}: {len(rows)} characters, {test} test, {path.stat().st_size} bytes")


def build_style(name: str, seed: int) -> list[dict[str, object]]:
    """Draw a style's characters: rows of the Parquet file, sorted by hair variant."""
    recipe = RECIPES[name]
    definition = json.loads(files("dicebear_styles").joinpath(f"{name}.json").read_text("utf-8"))
    style = Style(definition)
    rng = np.random.default_rng([seed, sum(name.encode())])
    excluded = recipe.excluded
    variants = {
        part: [v for v in definition["components"][part]["variants"] if (part, v) not in excluded]
        for part in recipe.parts
    }
    held_out = choose_held_out(variants, rng)
    drawn: dict[str, dict[str, object]] = {}
    while len(drawn) < recipe.count:
        split = "test" if len(drawn) < recipe.count * TEST_SHARE else "train"
        choice = choose_parts(variants, held_out, recipe, split, rng)
        key = json.dumps(choice, sort_keys=True)
        drawing = None if key in drawn else draw(style, choice, recipe)
        if drawing is not None:
            drawn[key] = row_of(name, len(drawn), split, choice, drawing)
    # Neighbours with the same parts in the same place let the compressor reuse whole regions.
    return sorted(drawn.values(), key=lambda row: (row.pop("hair"), row["character_id"]))


def row_of(
    name: str,
    number: int,
    split: str,
    choice: dict[str, str | None],
    drawing: tuple[np.ndarray, np.ndarray],
) -> dict[str, object]:
    """One row of the Parquet file, and its hair variant for sorting."""
    labels, ink = drawing
    return {
        "character_id": f"{name}-{number:04d}",
        "style": name,
        "split": split,
        "roles": list(ROLES),
        "height": SIZE,
        "width": SIZE,
        "labels": labels.tobytes(),
        "ink": ink.tobytes(),
        "attributes": json.dumps(attributes_of(name, choice, labels), sort_keys=True),
        "hair": choice["hair"],
    }


def choose_held_out(
    variants: dict[str, list[str]], rng: np.random.Generator
) -> dict[str, frozenset[str]]:
    """Choose the part variants that only test characters may use."""
    counts = {
        "hair": round(TEST_SHARE * len(variants["hair"])),
        "eyes": round(0.1 * len(variants["eyes"])),
        "mouth": round(0.1 * len(variants["mouth"])),
    }
    return {
        part: frozenset(rng.choice(variants[part], count, replace=False).tolist())
        for part, count in counts.items()
    }


def choose_parts(
    variants: dict[str, list[str]],
    held_out: dict[str, frozenset[str]],
    recipe: StyleRecipe,
    split: str,
    rng: np.random.Generator,
) -> dict[str, str | None]:
    """Choose a variant per part (None = absent), respecting the split."""
    choice: dict[str, str | None] = {}
    for part, probability in recipe.parts.items():
        reserved = held_out.get(part, frozenset())
        if split == "train":
            allowed = [v for v in variants[part] if v not in reserved]
        elif part == "hair":
            allowed = sorted(reserved)
        else:
            allowed = variants[part]
        pick = str(rng.choice(allowed))
        choice[part] = pick if rng.random() < probability else None
    return choice


def draw(
    style: Style, choice: dict[str, str | None], recipe: StyleRecipe
) -> tuple[np.ndarray, np.ndarray] | None:
    """Draw one character: (labels uint8 [S, S], ink uint8 [S, S] in 16 levels).

    None if too many pixels belong to no role.
    """
    rgba = rasterise(to_svg(style, choice, recipe), SIZE * INK_SUPERSAMPLING)
    labels, unlabelled = label_map(rgba)
    if unlabelled > MAX_UNLABELLED:
        return None
    centre = INK_SUPERSAMPLING // 2
    small = np.ascontiguousarray(labels[centre::INK_SUPERSAMPLING, centre::INK_SUPERSAMPLING])
    return small, ink_map(rgba, labels, recipe)


def to_svg(style: Style, choice: dict[str, str | None], recipe: StyleRecipe) -> str:
    """Write the character as SVG whose fills are id colours: level of cyan = role, ink red."""
    options: dict[str, object] = {"seed": "fixed", "size": SIZE}
    for part, variant in choice.items():
        if variant is not None:
            options[f"{part}Variant"] = [variant]
        options[f"{part}Probability"] = 0 if variant is None else 100
    for colour, role in recipe.role_of_colour.items():
        options[f"{colour}Color"] = [id_colour(role)]
    svg = Avatar(style, options).to_string()
    if choice.get("beard"):
        # The mouth under a beard is a translucent white cut-out; make it the mouth's own colour.
        svg = svg.replace('opacity=".4"', "")
        svg = re.sub(
            r'(<g mask="url\(#beard[^>]*><path fill=")white', rf"\1{id_colour('lips')}", svg
        )
    for fill, role in recipe.role_of_fill.items():
        svg = svg.replace(f'fill="{fill}"', f'fill="{id_colour(role)}"')
    return svg


def id_colour(role: str | None) -> str:
    """Hex colour that stands for a role; None is ink."""
    if role is None:
        return "#ff0000"
    level = ROLES.index(role) * ID_STEP
    return f"#00{level:02x}{level:02x}"


def rasterise(svg: str, size: int) -> np.ndarray:
    """Render with hard edges to straight RGBA, uint8 [size, size, 4]."""
    svg = re.sub(r'shape-rendering="[^"]*"', "", svg)
    svg = svg.replace("<svg ", '<svg shape-rendering="crispEdges" ', 1)
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    return np.array(Image.open(io.BytesIO(png)).convert("RGBA"))


def label_map(rgba: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (role index uint8 [H, W], share of foreground pixels that had no role).

    Pixels under ink take the role of the nearest pixel that has one, so that a colour reaches
    under its outline; outside ink, transparent pixels are background.
    """
    opaque = rgba[..., 3] > 127
    ink = opaque & (rgba[..., 0] == 255)
    level = rgba[..., 1].astype(int)
    exact = opaque & ~ink & (rgba[..., 0] == 0) & (level % ID_STEP == 0) & (level > 0)
    labels = np.where(exact, level // ID_STEP, 0).astype(np.uint8)
    _, nearest = cv2.distanceTransformWithLabels(
        (~exact).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    role_of_component = np.zeros(nearest.max() + 1, np.uint8)
    role_of_component[nearest[exact]] = labels[exact]
    labels = np.where(opaque & ~exact, role_of_component[nearest], labels).astype(np.uint8)
    unlabelled = float((opaque & ~exact & ~ink).sum() / max(opaque.sum(), 1))
    return labels, unlabelled


def ink_map(rgba: np.ndarray, large_labels: np.ndarray, recipe: StyleRecipe) -> np.ndarray:
    """Ink coverage in 16 levels, uint8 [S, S]; borders of outlined roles are drawn in."""
    solid = ((rgba[..., 0] == 255) & (rgba[..., 3] > 127)).astype(np.uint8)
    if recipe.outlined_roles:
        solid |= borders(large_labels, recipe.outlined_roles)
    coverage = cv2.resize(solid.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return (np.round(coverage * 15) * 17).astype(np.uint8)


def borders(labels: np.ndarray, roles: tuple[str, ...]) -> np.ndarray:
    """Draw a line of LINE_WIDTH final pixels where two of the given roles meet, uint8 0/1."""
    touched = np.zeros(labels.shape, np.uint8)
    half = cv2.getStructuringElement(
        cv2.MORPH_ELLIPSE, (int(LINE_WIDTH * INK_SUPERSAMPLING) | 1,) * 2
    )
    for role in roles:
        touched += cv2.dilate((labels == ROLES.index(role)).astype(np.uint8), half)
    return (touched >= 2).astype(np.uint8)


def attributes_of(
    name: str, choice: dict[str, str | None], labels: np.ndarray
) -> dict[str, str | bool]:
    """Facts about a character: its part variants and what follows from them and the drawing."""
    facts: dict[str, str | bool] = {p: v for p, v in choice.items() if v is not None}
    has = {role: bool((labels == ROLES.index(role)).sum() >= 20) for role in ROLES}
    sunglasses = {"lorelei": "variant02", "adventurer": "variant01"}[name]
    details = choice.get("details")
    facts |= {
        "has_glasses": choice.get("glasses") is not None,
        "has_sunglasses": choice.get("glasses") == sunglasses,
        "has_earrings": has["earrings"],
        "has_beard": choice.get("beard") is not None,
        "has_mustache": details == "mustache",
        "has_freckles": choice.get("freckles") is not None or details == "freckles",
        "has_blush": details == "blush",
        "has_accessory": has["accessory"],
        "open_mouth": has["throat"] or has["tongue"],
        "eyes_visible": has["eyes"],
        "hair_length": hair_length(labels),
    }
    return facts


def hair_length(labels: np.ndarray) -> str:
    """``long`` if hair reaches below the lowest quarter of the face, else ``short``."""
    hair_rows = np.flatnonzero((labels == ROLES.index("hair")).sum(axis=1) >= 3)
    skin_rows = np.flatnonzero((labels == ROLES.index("skin")).any(axis=1))
    if not hair_rows.size or not skin_rows.size:
        return "short"
    reach = skin_rows[0] + 0.72 * (skin_rows[-1] - skin_rows[0])
    return "long" if hair_rows[-1] > reach else "short"


def write_rows(rows: list[dict[str, object]], path: Path) -> None:
    """Write rows as one page per column: equal parts of different characters then share bytes."""
    schema = pa.schema(
        [
            ("character_id", pa.string()),
            ("style", pa.string()),
            ("split", pa.string()),
            ("roles", pa.list_(pa.string())),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("labels", pa.binary()),
            ("ink", pa.binary()),
            ("attributes", pa.string()),
        ]
    )
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=["style", "split", "roles.list.element"],
        data_page_size=1 << 28,
        write_batch_size=len(rows),
        row_group_size=len(rows),
    )


if __name__ == "__main__":
    main()
