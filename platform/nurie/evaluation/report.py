"""From the metrics of single pictures to a table: means, intervals and comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nurie.evaluation.pairs import PROTOCOLS

_RESAMPLES = 2000
_COLOUR_ROLES = ("hair", "skin")
_TABLE = (
    ("psnr", "PSNR, dB", "higher"),
    ("ssim", "SSIM", "higher"),
    ("ms_ssim_distance", "MS-SSIM distance", "lower"),
    ("delta_e", "delta E", "lower"),
    ("lab_error/hair", "delta E, hair", "lower"),
    ("lab_error/skin", "delta E, skin", "lower"),
    ("line_f1", "line F1", "higher"),
    ("palette_to_truth", "palette to truth", "lower"),
    ("palette_to_reference", "palette to reference", "lower"),
)


class Interval(NamedTuple):
    """A mean with its 95% bootstrap interval over n pictures."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Measured:
    """Metrics of one picture.

    Attributes:
        sample_id: The sample.
        protocol: The protocol.
        values: Metric -> value.
    """

    sample_id: str
    protocol: str
    values: Mapping[str, float]


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean and 95% percentile interval, resampling pictures.

    Raises:
        ValueError: There are no values.
    """
    data = np.asarray(values, np.float64)
    if data.size == 0:
        raise ValueError("no values to average")
    picks = np.random.default_rng(seed).integers(data.size, size=(_RESAMPLES, data.size))
    low, high = np.quantile(data[picks].mean(axis=1), (0.025, 0.975))
    return Interval(float(data.mean()), float(low), float(high), int(data.size))


def summarize(measured: Iterable[Measured]) -> dict[str, dict[str, Interval]]:
    """Protocol -> metric -> interval, over the pictures that have the metric."""
    collected: dict[str, dict[str, list[float]]] = {}
    for picture in measured:
        metrics = collected.setdefault(picture.protocol, {})
        for name, value in picture.values.items():
            metrics.setdefault(name, []).append(value)
    return {
        protocol: {name: bootstrap(collected[protocol][name]) for name in collected[protocol]}
        for protocol in PROTOCOLS
        if protocol in collected
    }


def compare(summary: Mapping[str, Mapping[str, Interval]]) -> dict[str, float]:
    """How much the right reference helps.

    Returns:
        For P in ``own``, ``same_palette``: ``P_minus_wrong/psnr`` in dB, and
        ``P_over_wrong/lab_error/ROLE`` for hair and skin, the share of the wrong reference's error
        that is left. Left out: what the data set does not offer, and shares of an error of 0.
    """
    found: dict[str, float] = {}
    wrong = summary.get("wrong", {})
    for protocol in ("own", "same_palette"):
        right = summary.get(protocol, {})
        if "psnr" in right and "psnr" in wrong:
            found[f"{protocol}_minus_wrong/psnr"] = right["psnr"].mean - wrong["psnr"].mean
        for role in _COLOUR_ROLES:
            name = f"lab_error/{role}"
            if name in right and name in wrong and wrong[name].mean > 0:
                found[f"{protocol}_over_wrong/{name}"] = right[name].mean / wrong[name].mean
    return found


def table(
    summary: Mapping[str, Mapping[str, Interval]], *, intervals: bool = True
) -> list[list[str]]:
    """Cells of the main table, the header first: metric, one column per protocol."""
    protocols = [protocol for protocol in PROTOCOLS if protocol in summary]
    counts = [max(interval.n for interval in summary[protocol].values()) for protocol in protocols]
    header = [f"{name} n={count}" for name, count in zip(protocols, counts, strict=True)]
    lines = [["", *header, "better"]]
    for name, title, meaning in _TABLE:
        if any(name in summary[protocol] for protocol in protocols):
            cells = [_cell(summary[protocol].get(name), intervals) for protocol in protocols]
            lines.append([title, *cells, meaning])
    return lines


def _own(value: float | None) -> str:
    """A setting, or that the model's own was used."""
    return "the model's own" if value is None else f"{value:g}"


def markdown(report: Mapping[str, Any], summary: Mapping[str, Mapping[str, Interval]]) -> str:
    """The report as a page: what was measured, the table, the comparisons, what was left out."""
    head, *body = table(summary)
    lines = [
        "# Evaluation",
        "",
        f"Model `{report['model']}` (manifest {report['model_digest'][:12]}), "
        f"{report['num_samples']} unseen samples, {_own(report['num_inference_steps'])} steps, "
        f"guidance {_own(report['guidance_scale'])}, seed {report['seed']}. "
        "Means with 95% bootstrap intervals.",
        "",
        _row(head),
        _row(["---"] * len(head)),
        *map(_row, body),
        "",
        "| comparison | value |",
        "| --- | --- |",
        *(_row([name, f"{value:.3g}"]) for name, value in report["comparisons"].items()),
    ]
    for protocol, reason in report["skipped"].items():
        lines += ["", f"Left out of `{protocol}`: {reason}."]
    return "\n".join(lines) + "\n"


def _cell(interval: Interval | None, with_bounds: bool) -> str:
    if interval is None:
        return "-"
    if not with_bounds:
        return f"{interval.mean:.4g}"
    return f"{interval.mean:.4g} ({interval.low:.4g} to {interval.high:.4g})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
