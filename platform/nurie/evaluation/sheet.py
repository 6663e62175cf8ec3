"""Contact sheets: pictures in rows under headers, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_MARGIN = 6
_HEADER_SIZE = 13
_BACKGROUND = (255, 255, 255)
_INK = (40, 40, 40)
_FRAME = (205, 205, 205)
_SMALLEST_CELL = 96


def grid(rows: Sequence[Sequence[Image.Image]], headers: Sequence[str]) -> Image.Image:
    """Lay pictures out as a table.

    Args:
        rows: Pictures, one per header in every row; any sizes and modes, shown in cells of the
            size of the largest one, at least 96 pixels wide.
        headers: One line above every column; too long ones are cut.

    Raises:
        ValueError: No rows, or a row whose length is not the number of headers.
    """
    if not rows or not headers:
        raise ValueError("a sheet needs at least one row and one column")
    for number, row in enumerate(rows):
        if len(row) != len(headers):
            raise ValueError(f"row {number} has {len(row)} pictures for {len(headers)} headers")
    width = max(_SMALLEST_CELL, max(picture.width for row in rows for picture in row))
    height = max(picture.height * width // picture.width for row in rows for picture in row)
    sheet = Image.new(
        "RGB",
        (
            len(headers) * (width + _MARGIN) + _MARGIN,
            len(rows) * (height + _MARGIN) + 2 * _MARGIN + _HEADER_SIZE + 4,
        ),
        _BACKGROUND,
    )
    _write_headers(sheet, headers, width)
    top = 2 * _MARGIN + _HEADER_SIZE + 4
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            corner = (
                _MARGIN + column * (width + _MARGIN),
                top + number * (height + _MARGIN),
            )
            _paste(sheet, picture, corner, (width, height))
    return sheet


def _write_headers(sheet: Image.Image, headers: Sequence[str], width: int) -> None:
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_HEADER_SIZE)
    for column, header in enumerate(headers):
        text = header
        while text and draw.textlength(text, font) > width:
            text = text.removesuffix("…")[:-1] + "…" if len(text) > 1 else ""
        draw.text((_MARGIN + column * (width + _MARGIN), _MARGIN), text, _INK, font)


def _paste(
    sheet: Image.Image, picture: Image.Image, corner: tuple[int, int], cell: tuple[int, int]
) -> None:
    """Fit a picture into its cell, pixels kept square, with a thin frame."""
    scale = min(cell[0] / picture.width, cell[1] / picture.height)
    size = (round(picture.width * scale), round(picture.height * scale))
    shown = picture.convert("RGB")
    if size != picture.size:
        shown = shown.resize(size, Image.Resampling.BICUBIC)
    left = corner[0] + (cell[0] - size[0]) // 2
    upper = corner[1] + (cell[1] - size[1]) // 2
    sheet.paste(shown, (left, upper))
    ImageDraw.Draw(sheet).rectangle(
        (left - 1, upper - 1, left + size[0], upper + size[1]), outline=_FRAME
    )
