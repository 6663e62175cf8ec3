"""From the metrics of single pictures to tables: means, intervals and comparisons."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nurie.evaluation.alterations import ALTERATIONS
from nurie.evaluation.distributions import ENOUGH_FOR_FID
from nurie.evaluation.pairs import PROTOCOLS
from nurie.evaluation.statistics import Interval, bootstrap
from nurie.evaluation.tasks import MODEL, SWAPS

Summary = dict[str, dict[str, dict[str, Interval]]]
"""System -> protocol -> metric -> interval."""

_COLOUR_ROLES = ("hair", "skin")
_ENTANGLEMENT = ("other_seed", "silhouette", *ALTERATIONS)


class Metric(NamedTuple):
    """How a metric is shown.

    Attributes:
        title: Its name in tables.
        better: ``higher`` or ``lower``.
        meaning: One line.
    """

    title: str
    better: str
    meaning: str


METRICS: dict[str, Metric] = {
    "psnr": Metric("PSNR, dB", "higher", "peak signal-to-noise ratio to the truth, at most 100"),
    "ssim": Metric("SSIM", "higher", "structural similarity to the truth"),
    "ms_ssim_distance": Metric("MS-SSIM distance", "lower", "1 - multi-scale SSIM to the truth"),
    "lpips": Metric("LPIPS", "lower", "perceptual distance to the truth"),
    "delta_e": Metric("delta E", "lower", "mean colour difference to the truth, CIE 1976"),
    "delta_e_p95": Metric(
        "delta E, 95%", "lower", "95th percentile of that difference: what stands out"
    ),
    "lab_error/hair": Metric(
        "delta E, hair", "lower", "mean colour difference over the pixels of the hair"
    ),
    "lab_error/skin": Metric(
        "delta E, skin", "lower", "mean colour difference over the pixels of the skin"
    ),
    "line_f1": Metric("line F1", "higher", "edges of the result are lines of the sketch, 2 pixels"),
    "line_distance_score": Metric("line distance score", "higher", "1 - distance of both / 8"),
    "bleeding": Metric("bleeding", "lower", "share of pixels by a border with its other colour"),
    "background_leak": Metric(
        "background leak", "lower", "share of the figure in colours of the reference's background"
    ),
    "palette_to_truth": Metric(
        "palette to truth", "lower", "distance of the colours to the truth's, wherever they lie"
    ),
    "palette_to_reference": Metric(
        "palette to reference",
        "lower",
        "the same to the reference; small under `wrong`: it follows what it was given",
    ),
    "reference_likeness": Metric(
        "likeness to reference", "higher", "cosine of the image encoder's features of both"
    ),
    "truth_likeness": Metric(
        "likeness to truth", "higher", "cosine of the features of result and truth"
    ),
    "kid": Metric(
        "KID",
        "lower",
        "distance of the sets of results and truths, unbiased: of equal ones around 0",
    ),
    "fid": Metric("FID", "lower", f"distance of both sets, biased below {ENOUGH_FOR_FID} pictures"),
}
"""The metrics of the tables, in their order."""

SWAP_METRICS: dict[str, Metric] = {
    "disentanglement": Metric("disentanglement", "higher", "harmonic mean of both scores"),
    "shape_score": Metric("shape score", "higher", "shapes stay when references are swapped"),
    "colour_score": Metric("colour score", "higher", "colours follow the own reference"),
    "retrieval": Metric("retrieval", "higher", "results whose own reference is the nearest"),
    "margin": Metric("margin", "higher", "how much nearer than after a swap"),
    "change/edges": Metric("change, edges", "lower", "of the results' edges between references"),
    "change/lines": Metric("change, lines", "lower", "of their dark lines"),
    "change/segments": Metric("change, segments", "lower", "of their regions of one colour"),
}
"""The parts of the disentanglement benchmark."""


@dataclass(frozen=True)
class Table:
    """A table of any report.

    Attributes:
        title: What it shows.
        header: Heads of the columns.
        rows: Cells.
        note: A sentence below it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """Metrics of one picture, or of one set of swaps.

    Attributes:
        sample_id: The sample.
        protocol: The protocol.
        values: Metric -> value.
        system: The model, or a peer.
    """

    sample_id: str
    protocol: str
    values: Mapping[str, float]
    system: str = MODEL


def summarize(measured: Iterable[Measured]) -> Summary:
    """Means with intervals, over the pictures that have the metric."""
    collected: dict[str, dict[str, dict[str, list[float]]]] = {}
    for picture in measured:
        protocols = collected.setdefault(picture.system, {})
        metrics = protocols.setdefault(picture.protocol, {})
        for name, value in picture.values.items():
            metrics.setdefault(name, []).append(value)
    return {
        system: {
            protocol: {name: bootstrap(values) for name, values in sorted(metrics.items())}
            for protocol, metrics in sorted(
                protocols.items(), key=lambda item: protocol_rank(item[0])
            )
            if metrics
        }
        for system, protocols in sorted(collected.items(), key=lambda item: item[0] != MODEL)
    }


def compare(protocols: Mapping[str, Mapping[str, Interval]]) -> dict[str, float]:
    """How much the right reference helps one system.

    Returns:
        For P in ``own``, ``same_palette``: ``P_minus_wrong/psnr`` in dB, and
        ``P_over_wrong/lab_error/ROLE`` for hair and skin, the share of the wrong reference's error
        that is left. Left out: what the data set does not offer, and shares of an error of 0.
    """
    found: dict[str, float] = {}
    wrong = protocols.get("wrong", {})
    for protocol in ("own", "same_palette"):
        right = protocols.get(protocol, {})
        if "psnr" in right and "psnr" in wrong:
            found[f"{protocol}_minus_wrong/psnr"] = right["psnr"].mean - wrong["psnr"].mean
        for role in _COLOUR_ROLES:
            name = f"lab_error/{role}"
            if name in right and name in wrong and wrong[name].mean > 0:
                found[f"{protocol}_over_wrong/{name}"] = right[name].mean / wrong[name].mean
    return found


def tables(summary: Summary, *, intervals: bool = True) -> list[Table]:
    """All tables: the model by protocol, all systems by protocol, disentanglement by system."""
    found = []
    for system, protocols in summary.items():
        own = {name: metrics for name, metrics in protocols.items() if name != SWAPS}
        if own and (system == MODEL or MODEL not in summary):
            found.append(_by_protocol(system, own, intervals))
    if len(summary) > 1:
        for protocol in _protocols(summary):
            found.append(_by_system(summary, protocol, intervals))
    if any(SWAPS in protocols for protocols in summary.values()):
        found += _disentanglement(summary, intervals)
    return found


def markdown(
    title: str, head: str, found: Sequence[Table], skipped: Mapping[str, str] | None = None
) -> str:
    """A page: what was measured, the tables, what was left out."""
    lines = [f"# {title}", "", head, ""]
    for table in found:
        lines += [f"## {table.title}", ""]
        lines += [markdown_table(table), ""]
        lines += [table.note, ""] if table.note else []
    for what, reason in (skipped or {}).items():
        lines += [f"Left out of `{what}`: {reason}.", ""]
    return "\n".join(lines)


def markdown_table(table: Table) -> str:
    """Head and rows, without title and note."""
    rule = ["---"] * len(table.header)
    return "\n".join(map(_row, (table.header, rule, *table.rows)))


def describe(report: Mapping[str, Any]) -> str:
    """One sentence: what was measured, how."""
    if "model" not in report:
        return (
            f"Results in `{report['results']}` (manifest {report['manifest_digest'][:12]}), "
            f"{report['num_samples']} samples. Means with 95% bootstrap intervals."
        )
    return (
        f"Model `{report['model']}` (manifest {report['model_digest'][:12]}), "
        f"{report['num_samples']} unseen samples of `{report['shards']}` "
        f"(manifest {report['shards_digest'][:12]}), {_own(report['num_inference_steps'])} steps, "
        f"guidance {_own(report['guidance_scale'])}, seed {report['seed']}. "
        "Means with 95% bootstrap intervals."
    )


def comparisons_table(comparisons: Mapping[str, float]) -> Table:
    """What the right reference is worth."""
    rows = [
        [_comparison_title(name), f"{value:.{decimals(abs(value))}f}"]
        for name, value in comparisons.items()
    ]
    return Table("Right against wrong reference", ["comparison", "value"], rows)


def _comparison_title(name: str) -> str:
    """``own_over_wrong/lab_error/hair`` in words."""
    what, _, metric = name.partition("/")
    if metric not in METRICS:
        return name.replace("_", " ").replace("/", ", ")
    return f"{METRICS[metric].title}: {what.replace('_palette', ' palette').replace('_', ' ')}"


def cell(interval: Interval | None, with_bounds: bool = True) -> str:
    """An interval as text."""
    if interval is None:
        return "-"
    places = decimals(max(abs(value) for value in interval[:3]))
    mean, low, high = (f"{value:.{places}f}" for value in interval[:3])
    return f"{mean} ({low} to {high})" if with_bounds else mean


def decimals(largest: float) -> int:
    """Decimals that show three digits of a number, at most four of them."""
    if largest == 0:
        return 0
    return min(4, max(0, 2 - math.floor(math.log10(largest))))


def _by_protocol(
    system: str, protocols: Mapping[str, Mapping[str, Interval]], intervals: bool
) -> Table:
    counts = [max(interval.n for interval in metrics.values()) for metrics in protocols.values()]
    header = [f"{name}, n={count}" for name, count in zip(protocols, counts, strict=True)]
    rows = [
        [metric.title, *(cell(m.get(name), intervals) for m in protocols.values()), metric.better]
        for name, metric in METRICS.items()
        if any(name in metrics for metrics in protocols.values())
    ]
    title = "By reference" if system == MODEL else f"By reference: {system}"
    return Table(title, ["", *header, "better"], rows)


def _by_system(summary: Summary, protocol: str, intervals: bool) -> Table:
    systems = {name: found[protocol] for name, found in summary.items() if protocol in found}
    names = [name for name in METRICS if any(name in metrics for metrics in systems.values())]
    header = ["", *systems, "better"]
    rows = [
        [
            METRICS[name].title,
            *(cell(metrics.get(name), intervals) for metrics in systems.values()),
            METRICS[name].better,
        ]
        for name in names
    ]
    return Table(f"All systems, reference `{protocol}`", header, rows)


def _disentanglement(summary: Summary, intervals: bool) -> list[Table]:
    systems = {name: found[SWAPS] for name, found in summary.items() if SWAPS in found}
    count = max(metrics["disentanglement"].n for metrics in systems.values())
    rows = [
        [metric.title, *(cell(m.get(name), intervals) for m in systems.values()), metric.better]
        for name, metric in SWAP_METRICS.items()
    ]
    kinds = [
        [kind, *(cell(m.get(f"entanglement/{kind}"), intervals) for m in systems.values())]
        for kind in _ENTANGLEMENT
        if any(f"entanglement/{kind}" in metrics for metrics in systems.values())
    ]
    return [
        Table(f"Disentanglement, n={count} sketches", ["", *systems, "better"], rows),
        Table(
            "Entanglement by type of reference",
            ["altered reference", *systems],
            kinds,
            "Change of the result's shapes, 0 to 1, lower is better; `other_seed` is chance.",
        ),
    ]


def _protocols(summary: Summary) -> list[str]:
    names = {name for protocols in summary.values() for name in protocols if name != SWAPS}
    return sorted(names, key=protocol_rank)


def protocol_rank(protocol: str) -> int:
    """Place of a protocol in tables."""
    return PROTOCOLS.index(protocol) if protocol in PROTOCOLS else len(PROTOCOLS)


def _own(value: float | None) -> str:
    """A setting, or that the model's own was used."""
    return "the model's own" if value is None else f"{value:g}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
