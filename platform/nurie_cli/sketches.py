"""Which pictures ``nurie colorize`` makes, and under which names."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nurie.inference.formats import FORMATS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Task:
    """One picture to make.

    Args:
        sketch: Line drawing.
        reference: Picture whose colours are taken.
        output: File to write.
    """

    sketch: Path
    reference: Path
    output: Path


def plan(
    sketches: Sequence[str],
    references: Sequence[str],
    output: str,
    ending: str = "png",
    *,
    skip_existing: bool,
) -> list[Task]:
    """Every sketch with every reference, and where the result goes.

    Args:
        sketches: Files, folders (their pictures) and patterns.
        references: Files.
        output: A file for one picture; else a folder, with names made of the sketches'.
        ending: Of the names in a folder.
        skip_existing: Leave out pictures that are there.

    Raises:
        ValueError: If nothing is found or two results would have one name.
    """
    found = [file for text in sketches for file in _expand(text)]
    colours = [Path(text) for text in references]
    target = Path(output)
    if len(found) * len(colours) == 1 and not target.is_dir() and target.suffix:
        tasks = [Task(found[0], colours[0], target)]
    elif target.suffix.lower() in (*SUFFIXES, *(f".{name}" for name in FORMATS)):
        count = len(found) * len(colours)
        raise ValueError(f"--output: {output} is one file for {count} pictures; name a folder")
    else:
        several = len(colours) > 1
        tasks = [
            Task(
                s,
                r,
                target / f"{s.stem}-{r.stem}.{ending}"
                if several
                else target / f"{s.stem}.{ending}",
            )
            for s in found
            for r in colours
        ]
    _check_names(tasks)
    return [task for task in tasks if not (skip_existing and task.output.exists())]


def _expand(text: str) -> list[Path]:
    """The pictures that a file, folder or pattern stands for."""
    path = Path(text)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    elif path.exists() or not glob.has_magic(text):
        found = [path]
    else:
        matches = sorted(Path(file) for file in glob.glob(text, recursive=True))
        found = [file for file in matches if file.suffix.lower() in SUFFIXES]
    if not found:
        raise ValueError(f"SKETCH: {text} has no picture ({', '.join(SUFFIXES)})")
    return found


def _check_names(tasks: Sequence[Task]) -> None:
    (name, count), *_ = Counter(task.output for task in tasks).most_common(1)
    if count > 1:
        raise ValueError(
            f"--output: {count} pictures would be written to {name}; give sketches and references "
            "different names, or colour them one after the other"
        )
