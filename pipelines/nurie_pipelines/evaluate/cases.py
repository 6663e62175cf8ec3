"""Which pictures a report shows: best, median and worst, failures by metric, swaps, heat maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from nurie.data.png import decode_png
from nurie.evaluation.page import Case, Gallery
from nurie.evaluation.pairs import PROTOCOLS
from nurie.evaluation.report import METRICS
from nurie.evaluation.sheet import grid
from nurie.evaluation.tasks import GRAM, MODEL, SWAPS, Order, Source, Task
from nurie_pipelines.evaluate.store import ResultStore, Row

_PER_KIND = 3
_MOST_SWAPS = 3
_RANKED_BY = ("delta_e", "palette_to_reference")
_FAILURES = (
    "delta_e_p95",
    "lpips",
    "line_f1",
    "bleeding",
    "background_leak",
    "palette_to_reference",
    "reference_likeness",
)
_MAPS = ("map, encoder", "map, decoder")
_NAMES = {"own": "own picture", "same_palette": "same palette", "wrong": "wrong reference"}


@dataclass(frozen=True, eq=False)
class Cases:
    """The pictures of an evaluation.

    Args:
        rows: Scored tasks, in the report's order.
        store: Where their pictures are.
        source: Gives their sketches, references and truths.
        system: Whose pictures are shown.
    """

    rows: Sequence[Row]
    store: ResultStore
    source: Source
    system: str = MODEL

    def galleries(self) -> list[Gallery]:
        """All sections of pictures."""
        return [
            *self._ranked(),
            *self._failures(),
            self._swaps(),
            self._gram(),
        ]

    def sheet(self, limit: int) -> Image.Image:
        """Sketch, truth, then reference and result of every protocol; one line per sample."""
        rows = [row for row in self.rows if self._is_pair(row["task"])]
        protocols = [name for name in PROTOCOLS if any(r["task"].protocol == name for r in rows)]
        protocols = protocols or sorted({row["task"].protocol for row in rows})
        by_key = {(row["task"].order, row["task"].protocol): row for row in rows}
        orders = sorted({order for order, _ in by_key})[:limit]
        shown = [by_key[order, p] for order in orders for p in protocols if (order, p) in by_key]
        pictures = self._pictures(shown)
        lines = []
        for order in orders:
            first = next(by_key[order, p] for p in protocols if (order, p) in by_key)
            sample = self.source.orders(first["task"])[0].sample
            empty = np.full((*sample.sketch.shape, 3), 240, np.uint8)
            line = [sample.sketch, empty if sample.image is None else sample.image]
            for protocol in protocols:
                row = by_key.get((order, protocol))
                if row is None:
                    line += [empty, empty]
                else:
                    reference = self.source.orders(row["task"])[0].reference.image
                    line += [reference, pictures[row["key"]][0]]
            lines.append([Image.fromarray(picture) for picture in line])
        columns = [text for name in protocols for text in (_NAMES.get(name, name), "> result")]
        return grid(lines, ["sketch", "truth", *columns])

    def _ranked(self) -> Iterator[Gallery]:
        for protocol in dict.fromkeys(row["task"].protocol for row in self.rows):
            rows = [
                r for r in self.rows if self._is_pair(r["task"]) and r["task"].protocol == protocol
            ]
            name = next((n for n in _RANKED_BY if any(n in r["metrics"] for r in rows)), None)
            if name is None:
                continue
            ordered = sorted(
                (row for row in rows if name in row["metrics"]), key=partial(_badness, name=name)
            )
            middle = max(0, (len(ordered) - _PER_KIND) // 2)
            places = {
                "best": ordered[:_PER_KIND],
                "median": ordered[middle : middle + _PER_KIND],
                "worst": ordered[-_PER_KIND:],
            }
            chosen: dict[str, tuple[str, Row]] = {}
            for word, part in places.items():
                for row in part:
                    chosen.setdefault(row["key"], (f"{word}: ", row))
            yield Gallery(
                f"Best, median and worst, reference `{protocol}`",
                f"By {METRICS[name].title}, from best to worst.",
                self._cases(list(chosen.values()), name),
            )

    def _failures(self) -> Iterator[Gallery]:
        for name in _FAILURES:
            # With a wrong reference the truth is not wanted.
            right = [
                row
                for row in self.rows
                if self._is_pair(row["task"])
                and name in row["metrics"]
                and (row["task"].protocol != "wrong" or name not in ("delta_e_p95", "lpips"))
            ]
            worst = sorted(right, key=lambda row: -_badness(row, name))[:_PER_KIND]
            yield Gallery(
                f"Worst by {METRICS[name].title}",
                METRICS[name].meaning + ".",
                self._cases([("", row) for row in worst], name),
            )

    def _cases(self, chosen: Sequence[tuple[str, Row]], name: str) -> list[Case]:
        pictures = self._pictures([row for _, row in chosen])
        return [
            pair_case(
                self.source.orders(row["task"])[0],
                f"{word}{METRICS[name].title} {row['metrics'][name]:.3g}, {row['task'].protocol}, "
                f"{row['task'].sample_id}",
                {"result": pictures[row["key"]][0]},
            )
            for word, row in chosen
        ]

    def _swaps(self) -> Gallery:
        rows = [
            r for r in self.rows if r["task"].protocol == SWAPS and r["task"].system == self.system
        ]
        rows = sorted(rows, key=lambda row: row["metrics"]["disentanglement"])
        if len(rows) > _MOST_SWAPS:
            rows = [rows[0], rows[len(rows) // 2], rows[-1]]
        pictures = self._pictures(rows)
        cases = []
        for row in rows:
            orders = self.source.orders(row["task"])
            shown: dict[str, np.ndarray | list[np.ndarray]] = {"sketch": orders[0].sample.sketch}
            for order, result in zip(orders, pictures[row["key"]], strict=True):
                shown[order.name] = [order.reference.image, result]
            cases.append(
                Case(
                    f"disentanglement {row['metrics']['disentanglement']:.3g}, "
                    f"{row['task'].sample_id}",
                    shown,
                )
            )
        text = (
            "One sketch and seed; above the swapped or altered reference, below what it makes of "
            "it. Worst, median and best."
        )
        return Gallery("Disentanglement", text, cases)

    def _gram(self) -> Gallery:
        rows = [row for row in self.rows if row["task"].protocol == GRAM]
        pictures = self._pictures(rows)
        cases = []
        for row in rows:
            orders = self.source.orders(row["task"])
            made = pictures[row["key"]]
            per_order = len(made) // len(orders)
            by_order = [made[first : first + per_order] for first in range(0, len(made), per_order)]
            shown: dict[str, np.ndarray | list[np.ndarray]] = {
                "sketch": orders[0].sample.sketch,
                "reference": [order.reference.image for order in orders],
            }
            # Every picture of the own reference stands above that of the unrelated one.
            for name, *both in zip(("result", *_MAPS), *by_order, strict=True):
                shown[name] = both
            cases.append(Case(row["task"].sample_id, shown))
        text = (
            "How alike every place is to the marked one inside the denoiser, dark 0, light 1, at "
            "an encoder and a decoder block. Above with the own picture as reference (aligned), "
            "below with an unrelated one. Alike maps mean that the reference does not move shapes."
        )
        return Gallery("Gram heat maps", text, cases)

    def _pictures(self, rows: Sequence[Row]) -> dict[str, list[np.ndarray]]:
        found = self.store.pictures([row["key"] for row in rows])
        return {key: [decode_png(data, 3) for data in datas] for key, datas in found.items()}

    def _is_pair(self, task: Task) -> bool:
        return task.protocol not in (SWAPS, GRAM) and task.system == self.system


def pair_case(order: Order, caption: str, results: Mapping[str, np.ndarray]) -> Case:
    """Sketch, reference, what was made of them (label -> picture), and truth."""
    pictures = {"sketch": order.sample.sketch, "reference": order.reference.image, **results}
    if order.sample.image is not None:
        pictures["truth"] = order.sample.image
    return Case(caption, pictures)


def _badness(row: Row, name: str) -> float:
    value = row["metrics"][name]
    return value if METRICS[name].better == "lower" else -value
