"""The more a picture is damaged, the worse is every number of the reports, step by step."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from nurie.config.evaluate import EncoderConfig, NetworksConfig
from nurie.evaluation.disentanglement import entanglement, score_swaps
from nurie.evaluation.distributions import DISTANCES
from nurie.evaluation.lines import shape_change
from nurie.evaluation.measure import Picture, Reference, measure
from nurie.evaluation.networks import Networks
from nurie.evaluation.report import METRICS, SWAP_METRICS
from tests.networks import squared_error_network
from tests.scenes import Scene, scenes

ROOT = Path(__file__).parents[2]
STRENGTHS = (0.0, 0.2, 0.4, 0.7, 1.0)
REGIONS = [f"{kind}/{role}" for kind in ("lab_error", "lab_p95_error") for role in ("hair", "skin")]
ENTANGLEMENT = ("entanglement", "shape_change")
STEPPED = ("retrieval",)
"""Counts of few results: they may stay for a step, but fall in the end."""


def blend(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    return np.rint((1 - share) * first + share * second).astype(np.uint8)


# Damages of one picture: (scene, strength) -> result; at 0 it is the truth.


def noisy(scene: Scene, strength: float) -> np.ndarray:
    """Grey levels off by up to 60."""
    noise = np.random.default_rng(0).uniform(-60, 60, scene.truths[0].shape)
    return np.clip(scene.truths[0] + strength * noise, 0, 255).astype(np.uint8)


def miscoloured(scene: Scene, strength: float) -> np.ndarray:
    """On the way to the colours of another reference."""
    return blend(scene.truths[0], scene.truths[1], strength)


def erased(scene: Scene, strength: float) -> np.ndarray:
    """Without the upper part, up to nine tenths."""
    result = scene.truths[0].copy()
    result[: round(0.9 * strength * len(result))] = 255
    return result


def shifted(scene: Scene, strength: float) -> np.ndarray:
    """Beside its lines, by up to 5 pixels."""
    return np.roll(scene.truths[0], round(5 * strength), axis=1)


def leaking(scene: Scene, strength: float) -> np.ndarray:
    """The figure filled from above with the colour of the background."""
    result = scene.truths[0].copy()
    rows = np.flatnonzero(scene.mask.any(axis=1))
    filled = scene.mask.copy()
    filled[round(rows[0] + strength * (rows[-1] + 1 - rows[0])) :] = False
    result[filled] = np.median(result[~scene.mask], axis=0)
    return result


# Damages of the results of swapped references: (scene, strength) -> one result per reference.


def copied(scene: Scene, strength: float) -> list[np.ndarray]:
    """The reference itself shows through."""
    pairs = zip(scene.truths, scene.references, strict=True)
    return [blend(truth, reference.image, strength) for truth, reference in pairs]


def ignored(scene: Scene, strength: float) -> list[np.ndarray]:
    """On the way to one result for all references."""
    return [blend(truth, scene.truths[0], strength) for truth in scene.truths]


ORDERED: dict[Callable, tuple[str, ...]] = {
    noisy: ("psnr", "ssim", "ms_ssim_distance", "lpips", "delta_e", "delta_e_p95", *REGIONS),
    miscoloured: (
        *("psnr", "ssim", "ms_ssim_distance", "lpips", "delta_e", "delta_e_p95", *REGIONS),
        *("lab_median_error/hair", "lab_median_error/skin"),
        *("palette_to_truth", "palette_to_reference", "reference_likeness", "truth_likeness"),
        *("kid", "fid"),
    ),
    erased: ("psnr", "ssim", "ms_ssim_distance", "lpips", "line_f1", "line_distance_score"),
    shifted: ("psnr", "ssim", "ms_ssim_distance", "lpips", "line_distance_score", "bleeding"),
    leaking: ("background_leak", "delta_e", "palette_to_truth", "palette_to_reference"),
    copied: (
        *("shape_score", "disentanglement", "change/edges", "change/lines", "change/segments"),
        *ENTANGLEMENT,
    ),
    ignored: ("colour_score", "retrieval", "margin", "disentanglement"),
}
"""Damage -> the metrics that must see it."""


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable], list[dict]]:
    """Damage -> mean metrics at every strength."""
    networks = Networks(
        NetworksConfig(
            encoder=EncoderConfig(path=ROOT / "assets/nano/image_encoder"),
            lpips=squared_error_network(tmp_path_factory.mktemp("networks") / "lpips.onnx"),
        )
    )
    drawn = scenes(4)

    @cache
    def of(damage: Callable) -> list[dict]:
        measured = swapped if damage in (copied, ignored) else alone
        return [measured(damage, strength) for strength in STRENGTHS]

    def alone(damage: Callable, strength: float) -> dict[str, float]:
        results = [damage(one, strength) for one in drawn]
        pairs = zip(drawn, results, strict=True)
        means = _mean([_measured(one, result, networks) for one, result in pairs])
        if not DISTANCES.keys() & set(ORDERED[damage]):
            return means
        assert networks.features is not None
        sets = (results, [one.truths[0] for one in drawn])
        features = [np.stack([networks.features(picture) for picture in one]) for one in sets]
        return means | {name: far(*features).mean for name, far in DISTANCES.items()}

    def swapped(damage: Callable, strength: float) -> dict[str, float]:
        return _mean([_of_swaps(one, damage(one, strength)) for one in drawn])

    return of


def _measured(scene: Scene, result: np.ndarray, networks: Networks) -> dict[str, float]:
    truth = scene.truths[0]
    sample = Picture(truth, scene.sketch, "ink", scene.mask, scene.labels, scene.roles)
    found = measure(result, sample, Reference(truth, scene.mask))
    return found | networks.measure(result, truth, truth)


def _of_swaps(scene: Scene, results: list[np.ndarray]) -> dict[str, float]:
    return score_swaps(results, scene.references, scene.mask) | {
        "entanglement": entanglement(scene.truths[0], results[0]),
        "shape_change": shape_change(scene.truths[0], results[0]),
    }


def _mean(measured: list[dict[str, float]]) -> dict[str, float]:
    names = set.intersection(*(set(one) for one in measured))
    return {name: float(np.mean([one[name] for one in measured])) for name in names}


def _is_better_higher(name: str) -> bool:
    shown = METRICS | SWAP_METRICS
    return name in shown and shown[name].better == "higher"


@pytest.mark.parametrize(
    ("damage", "name"),
    [(damage, name) for damage, names in ORDERED.items() for name in names],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_more_damage_scores_worse(values: Callable, damage: Callable, name: str) -> None:
    found = [one[name] for one in values(damage)]
    badness = [-value for value in found] if _is_better_higher(name) else found
    steps = [after - before for before, after in pairwise(badness)]
    assert min(steps) >= 0 if name in STEPPED else min(steps) > 0, found
    assert badness[-1] > badness[0]


def test_no_metric_of_the_reports_is_left_out() -> None:
    seen = {name for names in ORDERED.values() for name in names}
    beside = {"lab_median_error/hair", "lab_median_error/skin", *REGIONS, *ENTANGLEMENT}
    assert seen == {*METRICS, *SWAP_METRICS, *beside}
