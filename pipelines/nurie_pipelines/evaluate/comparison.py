"""``nurie evaluate --compare``: evaluations of the same pairs, picture by picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table as RichTable

from nurie.checkpoints.manifest import write_atomically
from nurie.data.data_folder import DataFolder
from nurie.data.manifest import MANIFEST_NAME, file_sha256
from nurie.data.png import decode_png
from nurie.evaluation.page import Case, Gallery, render
from nurie.evaluation.report import METRICS, SWAP_METRICS, Table, decimals, markdown, protocol_rank
from nurie.evaluation.statistics import Difference, adjust, compare_paired
from nurie.evaluation.tasks import MODEL, Order, ShardSource, Source
from nurie_pipelines.evaluate.cases import pair_case
from nurie_pipelines.evaluate.manifest import ManifestSource, manifest_path
from nurie_pipelines.evaluate.outputs import log_to_mlflow, logged_in
from nurie_pipelines.evaluate.store import ResultStore

FILES = ("comparison.html", "comparison.md", "comparison.json")
"""Names of the written files."""

_SHOWN = METRICS | SWAP_METRICS
_LEVEL = 0.05
_RANKED_BY = "delta_e"
_CASES = 4
_KEYS = ("protocol", "sample_id", "reference_id", "style", "seed")


class ComparisonError(ValueError):
    """Evaluations that cannot be compared."""


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        folder: Where it is.
        rows: Metrics of the main system's pictures, by what was coloured with what.
        report: Its ``metrics.json``.
    """

    folder: Path
    rows: dict[tuple, dict[str, Any]]
    report: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """Read it.

        Raises:
            ComparisonError: There is no finished evaluation.
        """
        try:
            report = json.loads((folder / "metrics.json").read_text())
            rows = pq.read_table(folder / "per_sample.parquet").to_pylist()
        except (OSError, ValueError) as error:
            raise ComparisonError(f"{folder}: no finished evaluation ({error})") from error
        main = MODEL if any(row["system"] == MODEL for row in rows) else rows[0]["system"]
        chosen = [row for row in rows if row["system"] == main]
        by_pair = {tuple(row[key] for key in _KEYS): row for row in chosen}
        return cls(folder, by_pair, report)

    def source(self) -> Source | None:
        """Its sketches, references and truths; None where the data is gone or has changed."""
        try:
            if "shards" in self.report:
                shards = self.report["shards"]
                digest, source = DataFolder(shards).sha256(MANIFEST_NAME), ShardSource(shards)
                return source if digest == self.report["shards_digest"] else None
            results = Path(self.report["results"])
            digest, source = file_sha256(manifest_path(results)), ManifestSource(results)
            return source if digest == self.report["manifest_digest"] else None
        except (KeyError, OSError, ValueError):
            return None


def compare_evaluations(
    folders: Sequence[Path], output: Path, tracking: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Compare the first evaluation with each of the others; write, log and print.

    Args:
        folders: Outputs of ``nurie evaluate``.
        output: Folder of the comparison.
        tracking: ``uri`` and ``experiment`` of MLflow, where they are not to be those that the
            first evaluation was logged with.

    Returns:
        The content of ``comparison.json``.

    Raises:
        ComparisonError: Fewer than two, or no pair of sketch and reference in common.
    """
    if len(folders) < 2:
        raise ComparisonError("two evaluations and more can be compared; one was given")
    first, *others = [Evaluation.read(folder) for folder in folders]
    output.mkdir(parents=True, exist_ok=True)
    tables, galleries, report = [], [], {"first": str(folders[0]), "others": {}}
    for other in others:
        found = differences(first, other)
        report["others"][str(other.folder)] = {
            protocol: {name: difference._asdict() for name, difference in metrics.items()}
            for protocol, metrics in found.items()
        }
        tables += _tables(other, found)
        galleries += _galleries(first, other)
    head = (
        f"Second minus first; the first is `{folders[0]}`. Same sketch, reference and seed in "
        "both; 95% bootstrap intervals of the paired differences; p of a sign-flip test, "
        f"corrected for the number of metrics (Holm). A difference counts where p < {_LEVEL}."
    )
    title = "Comparison of evaluations"
    page = render(title, head, tables, galleries, {})
    write_atomically(output / FILES[0], page.encode())
    write_atomically(output / FILES[1], markdown(title, head, tables).encode())
    write_atomically(output / FILES[2], (json.dumps(report, indent=1) + "\n").encode())
    print_all(tables)
    names = " vs ".join(str(folder) for folder in folders)
    log_to_mlflow(
        logged_in(folders[0]).model_copy(update=dict(tracking or {})),
        "comparison",
        output,
        _values(report),
        {"evaluations": names},
        {"stage": "comparison"},
        FILES,
    )
    return report


def differences(first: Evaluation, other: Evaluation) -> dict[str, dict[str, Difference]]:
    """Protocol -> metric -> paired difference, p corrected over all of them.

    Raises:
        ComparisonError: They have no pair in common.
    """
    common = sorted(first.rows.keys() & other.rows.keys(), key=str)
    if not common:
        raise ComparisonError(
            f"{first.folder} and {other.folder} have no sketch, reference and seed in common: "
            "evaluate both with the same data set, seed and number of samples"
        )
    found: dict[str, dict[str, Difference]] = {}
    for protocol in dict.fromkeys(key[0] for key in common):
        keys = [key for key in common if key[0] == protocol]
        for name in _SHOWN:
            pairs = [(first.rows[key].get(name), other.rows[key].get(name)) for key in keys]
            whole = [(one, two) for one, two in pairs if one is not None and two is not None]
            if whole:
                ones, twos = zip(*whole, strict=True)
                found.setdefault(protocol, {})[name] = compare_paired(ones, twos)
    corrected = adjust(
        {f"{p}/{n}": d.p for p, metrics in found.items() for n, d in metrics.items()}
    )
    return {
        protocol: {n: d._replace(p=corrected[f"{protocol}/{n}"]) for n, d in metrics.items()}
        for protocol, metrics in found.items()
    }


def verdict(name: str, difference: Difference) -> str:
    """``better``, ``worse`` or ``-`` where chance explains it."""
    if difference.p >= _LEVEL:
        return "-"
    higher = _SHOWN[name].better == "higher"
    return "better" if (difference.mean > 0) == higher else "worse"


def _tables(other: Evaluation, found: dict[str, dict[str, Difference]]) -> list[Table]:
    return [
        Table(
            f"{other.folder}, {protocol}",
            ["metric", "difference", "p", "n", "the second is"],
            [
                [
                    _SHOWN[name].title,
                    _signed(d),
                    f"{d.p:.2g}",
                    str(d.n),
                    verdict(name, d),
                ]
                for name, d in metrics.items()
            ],
        )
        for protocol, metrics in sorted(found.items(), key=lambda item: protocol_rank(item[0]))
    ]


def _signed(d: Difference) -> str:
    places = decimals(max(abs(value) for value in (d.mean, d.low, d.high)))
    return f"{d.mean:+.{places}f} ({d.low:+.{places}f} to {d.high:+.{places}f})"


def _galleries(first: Evaluation, other: Evaluation) -> list[Gallery]:
    """The pictures that gained and that lost most, where both still have their pictures."""
    common = [
        (
            other.rows[key][_RANKED_BY] - first.rows[key][_RANKED_BY],
            first.rows[key],
            other.rows[key],
        )
        for key in first.rows.keys() & other.rows.keys()
        if first.rows[key].get(_RANKED_BY) is not None
        and other.rows[key].get(_RANKED_BY) is not None
    ]
    ordered = sorted(common, key=lambda entry: (entry[0], entry[1]["key"]))
    chosen = ordered if len(ordered) <= 2 * _CASES else [*ordered[:_CASES], *ordered[-_CASES:]]
    sides = [
        ResultStore(evaluation.folder).pictures([entry[side]["key"] for entry in chosen])
        for side, evaluation in ((1, first), (2, other))
    ]
    inputs = _inputs(first, [one["key"] for _, one, _ in chosen])
    cases = []
    for change, one, two in chosen:
        if one["key"] not in sides[0] or two["key"] not in sides[1]:
            continue
        made = {
            "first": decode_png(sides[0][one["key"]][0], 3),
            "second": decode_png(sides[1][two["key"]][0], 3),
        }
        caption = f"delta E {change:+.3g}, {one['protocol']}, {one['sample_id']}"
        given = inputs.get(one["key"])
        cases.append(Case(caption, made) if given is None else pair_case(given, caption, made))
    text = "By the change of delta E to the truth: most improved first, most worsened last."
    return [Gallery(f"Largest changes in {other.folder}", text, cases)]


def _inputs(evaluation: Evaluation, keys: Sequence[str]) -> dict[str, Order]:
    """Sketch, reference and truth of some pictures, where the evaluation's data is still there."""
    source = evaluation.source()
    if source is None:
        return {}
    rows = ResultStore(evaluation.folder).rows()
    return {row["key"]: source.orders(row["task"])[0] for row in rows if row["key"] in keys}


def _values(report: dict[str, Any]) -> dict[str, float]:
    return {
        f"{folder.lstrip('/')}/{protocol}/{name}/{part}": difference[part]
        for folder, protocols in report["others"].items()
        for protocol, metrics in protocols.items()
        for name, difference in metrics.items()
        for part in ("mean", "p")
    }


def print_all(tables: Sequence[Table]) -> None:
    """Print tables."""
    console = Console()
    for table in tables:
        shown = RichTable(*table.header, title=table.title)
        for cells in table.rows:
            shown.add_row(*cells)
        console.print(shown)
