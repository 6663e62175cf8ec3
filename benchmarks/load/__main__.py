"""`make load-test`: every load and fault in turn; ends with 1 when a bar is missed."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.load import breakages, costs, disk, loads
from benchmarks.load.crowd import Crowd, crowd
from benchmarks.load.endpoint import Endpoint, count_faults
from benchmarks.load.figures import Figure, table, write
from benchmarks.load.server import Server

OUTPUT = Path("runs/load-test.json")
NANO_STEP_S = 0.1
Load = Callable[[Server, Crowd, float], Awaitable[list[Figure]]]
Fault = Callable[[Server, Endpoint], list[Figure]]

SLEEPING: dict[str, Load] = {
    "S1": loads.steady,
    "S2": loads.flood,
    "S3": loads.slow_connections,
    "S4": loads.streams,
    "S5": loads.disconnects,
    "S6": loads.cancel_storm,
    "S7": loads.soak,
    "S8": loads.override,
    "body": loads.endless_body,
    "F2": breakages.poison,
    "F6": breakages.hang,
    "F10": breakages.locked_store,
    "F11": breakages.out_of_memory,
    "F12": breakages.equal_keys,
    "overhead": costs.overhead,
}
BATCHED: dict[str, Load] = {"batching": costs.batching, "waiting": costs.waiting}
NANO: dict[str, Fault] = {
    "F1": breakages.killed_replica,
    "F3": breakages.killed_proxy,
    "F4": breakages.killed_controller,
    "F7": breakages.rolling_update,
    "F8": breakages.bad_version,
    "damaged": breakages.damaged_store,
    "F5": breakages.killed_driver,
}
ALONE: dict[str, Callable[[], list[Figure]]] = {
    "F9": disk.full_disk,
    "zero": disk.scale_to_zero,
}
EVERYTHING = [*SLEEPING, *BATCHED, *NANO, *ALONE]


class LoadTest:
    """A run.

    Attributes:
        figures: What was measured so far.

    Args:
        wanted: Names of the loads and faults.
        seconds: How long a load lasts.
        console: Shows how far it is.
    """

    def __init__(self, wanted: Sequence[str], seconds: float, console: Console) -> None:
        self.figures: list[Figure] = []
        self._wanted = wanted
        self._seconds = seconds
        self._console = console
        self._lost = self._twice = self._asked = 0

    def run(self) -> None:
        """Measure everything that is wanted."""
        for names, server in (
            (SLEEPING, Server()),
            (BATCHED, Server(step_s=costs.STEP_S, each_s=costs.EACH_S)),
        ):
            if chosen := self._chosen(names):
                with server:
                    asyncio.run(self._loads(server, names, chosen))
        if chosen := self._chosen(NANO):
            with Server("nano", NANO_STEP_S) as server:
                self._faults(server, chosen)
        for name in self._chosen(ALONE):
            self._measure(name, ALONE[name])
        jobs = f"of {self._asked} that were asked for"
        self.figures += [
            Figure("all", "lost jobs", self._lost, "jobs", at_most=0, note=jobs),
            Figure("all", "duplicated jobs", self._twice, "jobs", at_most=0, note=jobs),
        ]

    def _chosen(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name in self._wanted]

    async def _loads(self, server: Server, known: dict[str, Load], names: list[str]) -> None:
        async with crowd(server.address) as visitors:
            for name in names:
                began = time.monotonic()
                try:
                    found = await known[name](server, visitors, self._seconds)
                    await visitors.idle()
                except Exception as error:
                    found = [_failed(name, error)]
                self._add(name, found, began)
            self._count(server, visitors.accepted, visitors.asked)

    def _faults(self, server: Server, names: list[str]) -> None:
        endpoint = Endpoint(server.address)
        for name in names:
            self._measure(name, lambda name=name: NANO[name](server, endpoint))
        self._count(server, endpoint.accepted, len(endpoint.asked))

    def _measure(self, name: str, work: Callable[[], list[Figure]]) -> None:
        began = time.monotonic()
        try:
            found = work()
        except Exception as error:
            found = [_failed(name, error)]
        self._add(name, found, began)

    def _count(self, server: Server, accepted: list[str], asked: int) -> None:
        lost, twice = count_faults(server.config.jobs, accepted, asked)
        self._lost, self._twice = self._lost + lost, self._twice + twice
        self._asked += asked

    def _add(self, name: str, found: list[Figure], began: float) -> None:
        self.figures += found
        missed = [each.name for each in found if each.passed is False]
        word = f"MISSED: {'; '.join(missed)}" if missed else "holds"
        self._console.print(
            f"{name} {time.monotonic() - began:.0f} s {word}", highlight=False, soft_wrap=True
        )


def _failed(name: str, error: Exception) -> Figure:
    """A load or fault that came to no end is a bar that is missed."""
    note = f"{type(error).__name__}: {error}"
    return Figure(name, "came to an end", 0, "1 is yes", at_least=1, note=note)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="how long a load lasts")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"all unless named: {' '.join(EVERYTHING)}"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the JSON")
    args = parser.parse_args(arguments)
    if unknown := sorted(set(args.names) - set(EVERYTHING)):
        parser.error(f"{', '.join(unknown)}: there are {', '.join(EVERYTHING)}")
    # Being told to end leaves what was measured so far, and no process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console()
    began = time.monotonic()
    test = LoadTest(args.names or EVERYTHING, args.seconds, console)
    try:
        test.run()
    finally:
        write(args.output, test.figures, time.monotonic() - began)
    console.print(table(test.figures))
    console.print(f"all of it: {args.output}")
    return 1 if any(figure.passed is False for figure in test.figures) else 0


if __name__ == "__main__":
    sys.exit(main())
