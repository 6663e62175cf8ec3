"""`make bench`: every benchmark, one table; ends with 1 when a goal is missed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable

import torch
from diffusers.utils import logging as diffusers_logging
from rich.console import Console
from rich.table import Table

from benchmarks import dual_branch, feed, gram, inference, loop, reading, savings, scoring
from benchmarks.measure import Row
from benchmarks.sizes import Problem

PARTS: dict[str, Callable[[Problem], Iterable[Row]]] = {
    "dual_branch": dual_branch.run,
    "inference": lambda problem: [inference.run(problem)],
    "savings": savings.run,
    "gram": gram.run,
    "reading": lambda _: reading.run(),
    "feed": lambda _: feed.run(),
    "loop": lambda _: loop.run(),
    "scoring": lambda _: [scoring.run()],
}


def main() -> int:
    """Run all, or those that the command line names, and print ratios of CPU time."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    names = parser.parse_args().parts or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"there is no {unknown[0]!r}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    diffusers_logging.set_verbosity_error()
    console = Console()
    problem = Problem()
    rows: list[Row] = []
    with console.status("") as status:
        for name in names:
            status.update(f"measuring {name}")
            rows += PARTS[name](problem)
    return show(rows, "CPU s", console)


def show(rows: list[Row], unit: str, console: Console) -> int:
    """Print the table; 1 if a goal is missed."""
    table = Table("ours | alternative", unit, unit, "ratio", "at least", "difference")
    for row in rows:
        style = None if row.ratio >= row.goal else "red"
        numbers = (f"{row.ours:.3f}", f"{row.other:.3f}", f"{row.ratio:.2f}x", f"{row.goal:g}x")
        table.add_row(row.name, *numbers, row.exact, style=style)
    console.print(table)
    return 0 if all(row.ratio >= row.goal for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
