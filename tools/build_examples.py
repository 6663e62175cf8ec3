"""Shrink Ren'Py's Sylvie and two backgrounds into assets/examples (MIT, notice beside them).

Usage: ``apt-get download renpy-thequestion``, ``dpkg -x renpy-thequestion_*.deb DIR``, then
``python tools/build_examples.py DIR [--out assets/examples]``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from nurie.data.examples import composite, crop_bust
from nurie.data.lines import xdog

IMAGES = Path("usr/share/games/renpy/the_question/game/images")
COPYRIGHT = Path("usr/share/doc/renpy-thequestion/copyright")
OUTFITS = ("green", "blue")
EXPRESSIONS = ("giggle", "normal", "smile", "surprised")
SPRITE_HEIGHT = 352
BACKGROUNDS = ("uni", "meadow")
BACKGROUND_SIZE = (480, 270)
BUST_SIZE = 384

NOTICE = """\
Sylvie's sprites and the backgrounds in this folder are the artwork of the demo game
"The Question" of Ren'Py 8.0.3 (https://www.renpy.org/), as packaged by Debian
(renpy-thequestion), shrunk; sylvie_sketch.png and sylvie_reference.png are made from them.
The package's copyright file says:

"""


def main() -> None:
    """Write sprites, backgrounds, the ready sketch and reference, and the licence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help="folder that the package was unpacked into")
    parser.add_argument("--out", type=Path, default=Path("assets/examples"))
    arguments = parser.parse_args()
    folder = arguments.out / "sylvie"
    folder.mkdir(parents=True, exist_ok=True)
    for outfit in OUTFITS:
        for expression in EXPRESSIONS:
            sprite = read_sprite(arguments.package, outfit, expression)
            width = round(sprite.width * SPRITE_HEIGHT / sprite.height)
            small = sprite.resize((width, SPRITE_HEIGHT), Image.Resampling.LANCZOS)
            small.save(folder / f"{outfit}_{expression}.png", optimize=True)
    for name in BACKGROUNDS:
        picture = Image.open(arguments.package / IMAGES / f"bg {name}.jpg").convert("RGB")
        shrunk = picture.resize(BACKGROUND_SIZE, Image.Resampling.LANCZOS)
        shrunk.save(folder / f"background_{name}.jpg", quality=88, optimize=True)
    (folder / "LICENSE").write_text(NOTICE + licence_of(arguments.package / COPYRIGHT))
    write_ready_pair(arguments.package, arguments.out)


def read_sprite(package: Path, outfit: str, expression: str) -> Image.Image:
    """Open a sprite at its full size, RGBA."""
    return Image.open(package / IMAGES / f"sylvie {outfit} {expression}.png").convert("RGBA")


def licence_of(copyright_file: Path) -> str:
    """Copy the package's main copyright paragraph and the Expat (MIT) licence text."""
    paragraphs = copyright_file.read_text("utf-8").split("\n\n")
    main_paragraph = next(text for text in paragraphs if text.strip().startswith("Files: *"))
    licence = next(text for text in paragraphs if text.strip().startswith("License: Expat"))
    lines = [line.rstrip() for line in f"{main_paragraph.strip()}\n\n{licence.strip()}".split("\n")]
    return "\n".join("" if line == " ." else line for line in lines) + "\n"


def write_ready_pair(package: Path, out: Path) -> None:
    """Write the sketch (green outfit) and the reference (blue outfit) that the demo uses."""
    bust = composite(resized(crop_bust(np.array(read_sprite(package, "green", "smile")))), None)
    sketch = (xdog(bust, sigma=0.9, threshold=0.014) * 255).round().astype(np.uint8)
    Image.fromarray(sketch).save(out / "sylvie_sketch.png", optimize=True)
    other = crop_bust(np.array(read_sprite(package, "blue", "normal")))
    Image.fromarray(composite(resized(other), None)).save(
        out / "sylvie_reference.png", optimize=True
    )


def resized(picture: np.ndarray) -> np.ndarray:
    """Resize a square RGBA picture to the bust's size."""
    size = (BUST_SIZE, BUST_SIZE)
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


if __name__ == "__main__":
    main()
