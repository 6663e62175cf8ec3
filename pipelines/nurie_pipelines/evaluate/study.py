"""``nurie study``: a blind study from finished evaluations, and its outcome.

A study's folder has what raters may see (``study.json``, ``pictures/``) and what they may not
(``key.json``: which picture is whose; ``answers.jsonl``). Names of pictures are random.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from nurie.checkpoints.manifest import write_atomically
from nurie.data.png import encode_png
from nurie.evaluation.preference import Choice, Preferences, evaluate_choices
from nurie.evaluation.report import Table, cell, markdown
from nurie.evaluation.tasks import GRAM, MODEL, SWAPS, ShardSource, Source
from nurie_pipelines.evaluate.manifest import ManifestSource
from nurie_pipelines.evaluate.store import ResultStore

STUDY, KEY, ANSWERS, PICTURES = "study.json", "key.json", "answers.jsonl", "pictures"
REPORT = "preferences.md"
QUESTION = "Which picture colours the sketch better with the colours of the reference?"


class StudyError(ValueError):
    """A study that cannot be built or evaluated."""


def build_study(
    folders: Sequence[Path],
    output: Path,
    *,
    num_pairs: int,
    num_checks: int,
    protocol: str,
    question: str,
    seed: int,
) -> Path:
    """Make a study of two or more evaluations of the same pairs, or of one with peers.

    Every item shows a sketch, a reference and two results. Systems meet equally often. In an
    attention check one of the two results is of another sketch.

    Args:
        folders: Outputs of ``nurie evaluate``.
        output: Folder of the study; must not exist.
        num_pairs: Items that count.
        num_checks: Attention checks among them.
        protocol: Which references: ``own``, ``same_palette`` or ``wrong``.
        question: What raters are asked.
        seed: Chooses items and pairs.

    Raises:
        StudyError: The folder exists, or there are too few results in common.
    """
    if output.exists():
        raise StudyError(f"{output}: exists; a study is never overwritten, choose another folder")
    results = _results(folders, protocol)
    systems = sorted({system for found in results.values() for system in found})
    shared = sorted(pair for pair, found in results.items() if len(found) == len(systems))
    if len(systems) < 2 or len(shared) < 2:
        raise StudyError(
            f"{', '.join(map(str, folders))}: {len(systems)} systems and {len(shared)} pairs in "
            f"common under {protocol!r}; a study needs two of both"
        )
    rng = np.random.default_rng(seed)
    order = [shared[i] for i in rng.permutation(len(shared))]
    matches = list(combinations(systems, 2))
    items, answers = [], _Key(output / PICTURES)
    for number in range(num_pairs + num_checks):
        pair = order[number % len(order)]
        made = {system: _picture(results[pair][system]) for system in systems}
        source, task = results[pair][systems[0]][1:]
        given = source.orders(task)[0]
        item = {
            "id": f"i{number:04d}",
            "sketch": answers.add(encode_png(given.sample.sketch)),
            "reference": answers.add(encode_png(given.reference.image)),
        }
        if number < num_pairs:
            one, two = matches[number % len(matches)]
            item |= {"one": answers.add(made[one], one), "two": answers.add(made[two], two)}
        else:
            other = results[order[(number + 1) % len(order)]][systems[0]]
            right = answers.add(made[systems[0]], systems[0])
            item |= {"one": right, "two": answers.add(_picture(other), "another sketch")}
            answers.checks[item["id"]] = right
        items.append(item)
    answers.write(output / KEY, systems)
    text = json.dumps({"question": question, "items": items}, indent=1) + "\n"
    write_atomically(output / STUDY, text.encode())
    return output


def read_answers(folder: Path) -> list[dict[str, Any]]:
    """All answers; a rater's later answer to an item replaces the earlier one.

    Raises:
        StudyError: There are none, or a line is damaged.
    """
    path = folder / ANSWERS
    if not path.is_file():
        raise StudyError(f"{path}: there are no answers yet; `nurie study serve` collects them")
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            answer = json.loads(line)
            newest[answer["rater"], answer["item"]] = answer
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise StudyError(f"{path}, line {number}: no answer ({error})") from None
    return list(newest.values())


def report_study(folder: Path) -> Preferences:
    """Evaluate the answers and write ``preferences.md``.

    Raises:
        StudyError: No study, or no answers.
        ValueError: No answer counts.
    """
    if not (folder / KEY).is_file():
        raise StudyError(f"{folder}: no study ({KEY} is missing); see nurie study build")
    key = json.loads((folder / KEY).read_text())
    items = {item["id"]: item for item in json.loads((folder / STUDY).read_text())["items"]}
    choices, checks = [], {}
    for answer in read_answers(folder):
        item = items[answer["item"]]
        if item["id"] in key["checks"]:
            right = answer["chosen"] == key["checks"][item["id"]]
            checks.setdefault(answer["rater"], []).append(right)
            continue
        loser = item["two"] if answer["chosen"] == item["one"] else item["one"]
        whose = key["pictures"]
        choices.append(Choice(answer["rater"], item["id"], whose[answer["chosen"]], whose[loser]))
    found = evaluate_choices(choices, checks)
    write_atomically(folder / REPORT, markdown("Preferences", _head(found), tables(found)).encode())
    return found


def tables(found: Preferences) -> list[Table]:
    """Strengths by system, shares by pair, and who was left out."""
    ordered = sorted(found.strengths.items(), key=lambda entry: -entry[1].mean)
    strengths = [[name, cell(interval), str(interval.n)] for name, interval in ordered]
    pairs = [
        [f"{one} to {two}", f"{share:.1%}", str(count), f"{p:.3g}"]
        for (one, two), (share, count, p) in found.pairs.items()
    ]
    excluded = [[rater, reason] for rater, reason in found.excluded.items()]
    return [
        Table(
            "Strength (Bradley-Terry)",
            ["system", "strength", "answers"],
            strengths,
            "A is preferred to B with odds exp(strength of A - strength of B). 95% intervals, "
            "resampling raters.",
        ),
        Table("Preferred", ["pair", "the first", "answers", "p (binomial)"], pairs),
        *([Table("Raters left out", ["rater", "why"], excluded)] if excluded else []),
    ]


def _head(found: Preferences) -> str:
    alpha = "not known" if found.agreement is None else f"{found.agreement:.2f}"
    return (
        f"{found.answers} answers of {found.raters} raters. Agreement (Krippendorff's alpha): "
        f"{alpha}."
    )


class _Key:
    """Pictures under random names, and whose they are."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.whose: dict[str, str] = {}
        self.checks: dict[str, str] = {}

    def add(self, picture: bytes, system: str | None = None) -> str:
        name = f"{secrets.token_hex(12)}.png"
        (self.folder / name).write_bytes(picture)
        if system is not None:
            self.whose[name] = system
        return name

    def write(self, path: Path, systems: Sequence[str]) -> None:
        value = {"systems": systems, "pictures": self.whose, "checks": self.checks}
        write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


_Result = tuple[Any, Source, Any]


def _picture(result: _Result) -> bytes:
    return result[0]


def _results(folders: Sequence[Path], protocol: str) -> Mapping[tuple, dict[str, _Result]]:
    """(sample, reference, seed) -> system -> its picture, and where sketch and reference are."""
    found: dict[tuple, dict[str, _Result]] = {}
    for folder in folders:
        if not (folder / "metrics.json").is_file():
            raise StudyError(f"{folder}: no finished evaluation (metrics.json is missing)")
        report = json.loads((folder / "metrics.json").read_text())
        source: Source = (
            ShardSource(Path(report["shards"]))
            if "shards" in report
            else ManifestSource(Path(report["results"]))
        )
        store = ResultStore(folder)
        listed = set(
            pq.read_table(folder / "per_sample.parquet", columns=["key"])["key"].to_pylist()
        )
        tasks = {
            row["key"]: row["task"]
            for row in store.rows()
            if row["key"] in listed
            and row["task"].protocol == protocol
            and row["task"].protocol not in (SWAPS, GRAM)
        }
        for key, pictures in store.pictures(list(tasks)).items():
            task = tasks[key]
            name = folder.parent.name if folder.name == "evaluation" else folder.name
            system = name if task.system == MODEL else task.system
            pair = (task.sample_id, task.reference_ids, task.seed)
            found.setdefault(pair, {})[system] = pictures[0], source, task
    return found
