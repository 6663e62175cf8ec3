"""The numbers of a model card, written from the report of an evaluation.

A card is ``README.md`` in a model folder. Only what is between two marks is written here; what a
person says about data, limits and licence stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nurie.checkpoints.manifest import (
    CARD_NAME,
    verify_manifest,
    weights_digest,
    write_atomically,
    write_manifest,
)
from nurie.evaluation.report import Summary, Table, comparisons_table, markdown_table, tables
from nurie.evaluation.statistics import Interval
from nurie.evaluation.tasks import MODEL, SWAPS

BEGIN = "<!-- `nurie models card` writes from here -->"
END = "<!-- to here -->"
_BETWEEN = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)


class CardError(ValueError):
    """A card cannot be written; the message names the file and the way out."""


def write_card(folder: Path, evaluation: Path) -> str:
    """Write the numbers of an evaluation into a model folder's card, and its manifest anew.

    Args:
        folder: Model folder; without a card it gets one.
        evaluation: Output of ``nurie evaluate`` for exactly these weights.

    Returns:
        The new digest of the model folder.

    Raises:
        CardError: There is no report, it is of other weights, or the card has no marks.
        nurie.checkpoints.manifest.CheckpointError: The model folder is damaged.
    """
    verify_manifest(folder, but_card=True)
    report = _read_report(evaluation)
    if report.get("weights_digest") != weights_digest(folder):
        raise CardError(
            f"{evaluation}: measures other weights than those in {folder}; run "
            f"`nurie evaluate {folder} --data SHARDS --output {evaluation}` again"
        )
    path = folder / CARD_NAME
    card = path.read_text() if path.is_file() else _new_card(folder)
    if len(_BETWEEN.findall(card)) != 1:
        raise CardError(f"{path}: the numbers go between the lines {BEGIN!r} and {END!r}, once")
    section = f"{BEGIN}\n{numbers(report)}\n{END}"
    write_atomically(path, _BETWEEN.sub(lambda _: section, card).encode())
    return write_manifest(folder)


def numbers(report: Mapping[str, Any]) -> str:
    """The section of numbers in Markdown, from the content of ``metrics.json``."""
    summary = _summary(report)
    own = {MODEL: {name: found for name, found in summary[MODEL].items() if name != SWAPS}}
    parts = [_what(report), *_sections("By reference", tables(own))]
    if len(summary) > 1:
        # The own picture as reference rewards copying; the rest is in the report.
        shared = "same_palette" if "same_palette" in summary[MODEL] else next(iter(own[MODEL]))
        beside = {s: {shared: found[shared]} for s, found in summary.items() if shared in found}
        parts += _sections("", tables(beside, intervals=False)[1:])
    swaps = {s: {SWAPS: found[SWAPS]} for s, found in summary.items() if SWAPS in found}
    if swaps:
        parts += _sections("", tables(swaps))
    if report["comparisons"]:
        parts += _sections("", [comparisons_table(report["comparisons"])])
    parts += [f"Left out of {what}: {why}." for what, why in report["skipped"].items()]
    parts += [f"Network `{role}`: {digest[:12]}." for role, digest in report["networks"].items()]
    return "\n\n".join(parts)


def _read_report(evaluation: Path) -> dict[str, Any]:
    path = evaluation / "metrics.json"
    if not path.is_file():
        raise CardError(f"{path}: missing; give the output folder of `nurie evaluate MODEL`")
    report = json.loads(path.read_text())
    if "model" not in report:
        raise CardError(f"{path}: measures pictures made elsewhere, not a model")
    return report


def _summary(report: Mapping[str, Any]) -> Summary:
    """Intervals by system, protocol and metric, as the tables take them."""
    systems = {MODEL: report["protocols"], **report["peers"]}
    found = {
        system: protocols
        | (
            {SWAPS: report["disentanglement"][system]}
            if system in report["disentanglement"]
            else {}
        )
        for system, protocols in systems.items()
    }
    return {
        system: {
            protocol: {name: Interval(**value) for name, value in metrics.items()}
            for protocol, metrics in protocols.items()
        }
        for system, protocols in found.items()
    }


def _what(report: Mapping[str, Any]) -> str:
    def chosen(name: str) -> str:
        return "the model's own" if report[name] is None else f"{report[name]:g}"

    return (
        f"{report['num_samples']} unseen samples of `{Path(report['shards']).name}` (manifest "
        f"{report['shards_digest'][:12]}), seed {report['seed']}, steps: "
        f"{chosen('num_inference_steps')}, guidance: {chosen('guidance_scale')}. Means with "
        f"95% bootstrap intervals over pictures; weights {report['weights_digest'][:12]}."
    )


def _sections(title: str, found: list[Table]) -> list[str]:
    parts = []
    for table in found:
        parts += [f"### {title or table.title}", markdown_table(table)]
        parts += [table.note] if table.note else []
    return parts


def _new_card(folder: Path) -> str:
    """Title, parts and their sizes, and where the numbers go."""
    parts = sorted(path for path in folder.iterdir() if path.is_dir())
    rows = [f"| `{part.name}/` | {_megabytes(part):.1f} MB |" for part in parts]
    return "\n".join(
        [
            f"# Model card: {folder.resolve().name}",
            "",
            "A reference-based sketch colorizer, made with nurie.",
            "",
            "| part | size |",
            "|---|---|",
            *rows,
            "",
            "## Measured",
            BEGIN,
            END,
            "",
        ]
    )


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
