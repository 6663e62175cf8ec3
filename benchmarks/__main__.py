"""`make bench`: every benchmark, one table; ends with 1 when a goal is missed."""

from __future__ import annotations

import sys

import torch
from diffusers.utils import logging as diffusers_logging
from rich.console import Console
from rich.table import Table

from benchmarks import dual_branch, feed, gram, inference, loop, reading, savings, scoring
from benchmarks.measure import Row
from benchmarks.sizes import Problem


def main() -> int:
    """Run all and print ratios of CPU time."""
    torch.set_num_threads(1)
    diffusers_logging.set_verbosity_error()
    console = Console()
    with console.status("measuring"):
        problem = Problem()
        rows = [*dual_branch.run(problem), inference.run(problem)]
        rows += [
            *savings.run(problem),
            *gram.run(problem),
            *reading.run(),
            *feed.run(),
            *loop.run(),
            scoring.run(),
        ]
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
