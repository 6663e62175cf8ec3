"""The demo's pictures: examples in, results over HTTP, one contact sheet out."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import requests
from PIL import Image, ImageDraw

from nurie.data.assets import find_assets
from nurie.data.examples import example_pairs
from nurie_cli.processes import StepError

COLUMNS = ("sketch", "reference", "result", "truth")
CELL = 192
MARGIN = 8
HEADER = 24
REQUEST_TIMEOUT_S = 180


@dataclass(frozen=True)
class Example:
    """A sketch to colour; ``truth`` is None where no exact one exists."""

    name: str
    sketch: Image.Image
    reference: Image.Image
    truth: Image.Image | None


def load_examples(num_characters: int, seed: int) -> list[Example]:
    """Sylvie, real anime input, and characters with part variants no training picture has."""
    folder = find_assets("examples")
    sketch, reference = (Image.open(folder / f"sylvie_{x}.png") for x in ("sketch", "reference"))
    pairs = example_pairs(num_characters, seed)
    characters = [
        Example(pair.sketch_id, _image(pair.sketch), _image(pair.reference), _image(pair.truth))
        for pair in pairs
    ]
    return [Example("Sylvie", sketch, reference, None), *characters]


def colour_over_http(
    base_url: str, examples: Sequence[Example], seed: int, on_example: Callable[[str], None]
) -> list[Image.Image]:
    """Send every example to ``POST /v1/colorize`` and return the answered pictures.

    Raises:
        StepError: The server answered with an error; the message holds its body.
    """
    results = []
    for number, example in enumerate(examples, start=1):
        on_example(f"{number}/{len(examples)} {example.name}")
        answer = requests.post(
            f"{base_url}/v1/colorize",
            files={
                "sketch": ("sketch.png", _png(example.sketch), "image/png"),
                "reference": ("reference.png", _png(example.reference), "image/png"),
            },
            data={"seed": str(seed)},
            timeout=REQUEST_TIMEOUT_S,
        )
        if answer.status_code != requests.codes.ok:
            raise StepError(
                f"{base_url}/v1/colorize answered {answer.status_code} for {example.name}: "
                f"{answer.text[:500]}"
            )
        results.append(Image.open(io.BytesIO(answer.content)).convert("RGB"))
    return results


def write_sheet(examples: Sequence[Example], results: Sequence[Image.Image], file: Path) -> None:
    """Write a contact sheet with one row per example: sketch, reference, result, truth."""
    width = MARGIN + len(COLUMNS) * (CELL + MARGIN)
    sheet = Image.new("RGB", (width, HEADER + len(examples) * (CELL + MARGIN)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(COLUMNS):
        draw.text((MARGIN + column * (CELL + MARGIN), MARGIN), title, fill="black")
    for row, (example, result) in enumerate(zip(examples, results, strict=True)):
        cells = (example.sketch, example.reference, result, example.truth)
        for column, cell in enumerate(cells):
            corner = (MARGIN + column * (CELL + MARGIN), HEADER + row * (CELL + MARGIN))
            if cell is None:
                draw.text(corner, "no exact truth", fill="grey")
            else:
                sheet.paste(_fit(cell), corner)
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)


def _fit(image: Image.Image) -> Image.Image:
    cell = Image.new("RGB", (CELL, CELL), "white")
    scale = CELL / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    cell.paste(small, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return cell


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
