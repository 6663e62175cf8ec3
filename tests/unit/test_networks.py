"""Metrics with somebody's network, statistics: closed forms, second implementations, order."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel

from nurie.config.evaluate import EncoderConfig, NetworksConfig
from nurie.evaluation.distributions import frechet_distance, kernel_distance
from nurie.evaluation.networks import NetworkError, Networks, network_digests, open_encoder
from nurie.evaluation.statistics import adjust, bootstrap, compare_paired
from tests.networks import mean_colour_network, squared_error_network

ROOT = Path(__file__).parents[2]
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture
def mean_colours(tmp_path: Path) -> Path:
    return mean_colour_network(tmp_path / "mean.onnx")


def flat(*rgb: int) -> np.ndarray:
    return np.full((32, 32, 3), rgb, np.uint8)


def test_a_network_by_path_measures_likeness(tmp_path: Path, mean_colours: Path) -> None:
    config = NetworksConfig(
        encoder=EncoderConfig(path=mean_colours, image_size=16, **PLAIN),
        lpips=squared_error_network(tmp_path / "lpips.onnx"),
    )
    networks = Networks(config)
    red, green, reddish = flat(255, 0, 0), flat(0, 255, 0), flat(255, 51, 0)
    near, far = (networks.measure(made, red, red) for made in (reddish, green))
    assert near["reference_likeness"] == pytest.approx(1 / np.sqrt(1 + 0.2**2), abs=1e-5)
    assert far["reference_likeness"] == pytest.approx(0.0, abs=1e-5)
    unlike = networks.measure(red, green, reddish)
    assert unlike["reference_likeness"] == pytest.approx(0.0, abs=1e-5)
    assert unlike["truth_likeness"] == pytest.approx(1 / np.sqrt(1 + 0.2**2), abs=1e-5)
    # -1..1: 51 of 255 is 0.4, in one of three channels.
    assert near["lpips"] == pytest.approx(0.4**2 / 3, abs=1e-5)
    assert near["lpips"] < far["lpips"]
    assert set(networks.measure(red, red, None)) == {"reference_likeness"}
    digests = network_digests(config)
    assert set(digests) == {"encoder", "lpips"}
    assert all(len(digest) == 64 for digest in digests.values())
    assert Networks(NetworksConfig()).measure(red, red, red) == {}


def test_the_shipped_encoder_is_a_network() -> None:
    folder = ROOT / "assets/nano/image_encoder"
    encoder = open_encoder(EncoderConfig(path=folder))
    red, again, blue = (
        encoder(image) for image in (flat(200, 0, 0), flat(200, 0, 0), flat(0, 0, 200))
    )
    assert red.ndim == 1
    np.testing.assert_array_equal(red, again)
    assert np.abs(red - blue).max() > 0.01


def test_what_is_no_network_is_refused(tmp_path: Path, mean_colours: Path) -> None:
    with pytest.raises(NetworkError, match="no such file"):
        open_encoder(EncoderConfig(path=tmp_path / "gone.onnx"))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(NetworkError, match="not an ONNX model"):
        open_encoder(EncoderConfig(path=broken))
    with pytest.raises(NetworkError, match="2 x"):
        Networks(NetworksConfig(lpips=mean_colours))
    with pytest.raises(NetworkError, match="no image encoder"):
        open_encoder(EncoderConfig(path=tmp_path))


# Distances of sets


@pytest.fixture
def sets() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 8)), rng.normal(0.5, 1.3, size=(50, 8))


def test_kid_is_the_unbiased_estimate_of_scikit_learns_kernel(sets) -> None:
    first, second = sets
    kernels = [
        polynomial_kernel(one, two, degree=3, gamma=1 / 8, coef0=1)
        for one, two in ((first, first), (second, second), (first, second))
    ]
    off = [k[~np.eye(len(k), dtype=bool)].mean() for k in kernels[:2]]
    assert kernel_distance(first, second).mean == pytest.approx(sum(off) - 2 * kernels[2].mean())


def test_fid_is_the_closed_form_with_scipys_root(sets) -> None:
    first, second = sets
    one, two = np.cov(first.T), np.cov(second.T)
    means = first.mean(0) - second.mean(0)
    expected = means @ means + np.trace(one + two - 2 * sqrtm(one @ two).real)
    assert frechet_distance(first, second).mean == pytest.approx(expected, rel=1e-6)
    few, others = first[:6], second[:6]  # Fewer pictures than features: singular covariances.
    root = sqrtm(np.cov(few.T) @ np.cov(others.T) + 1e-12 * np.eye(8)).real
    expected = np.sum((few.mean(0) - others.mean(0)) ** 2)
    expected += np.trace(np.cov(few.T) + np.cov(others.T) - 2 * root)
    assert frechet_distance(few, others).mean == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("distance", [kernel_distance, frechet_distance])
def test_distances_of_sets_know_worse_and_ignore_order(distance, sets) -> None:
    first, second = sets
    near, far = distance(first, first + 0.1), distance(first, first + 2.0)
    assert near.mean < far.mean
    assert far.low <= far.mean <= far.high
    assert far.n == 60
    shuffled = distance(first[::-1], np.roll(second, 7, axis=0))
    assert shuffled == pytest.approx(distance(first, second), abs=1e-9)
    with pytest.raises(ValueError, match="two sets"):
        distance(first[:1], second)


def test_kid_of_two_halves_of_one_population_is_around_zero() -> None:
    rng = np.random.default_rng(3)
    found = [kernel_distance(*rng.normal(size=(2, 40, 6))) for _ in range(20)]
    assert abs(np.mean([interval.mean for interval in found])) < 0.1
    assert np.mean([interval.low <= 0 <= interval.high for interval in found]) > 0.8


# Statistics


def test_intervals_do_not_depend_on_order() -> None:
    values = np.random.default_rng(0).normal(size=200).tolist()
    assert bootstrap(values) == bootstrap(values[::-1])
    assert compare_paired(values, [0.0] * 200) == compare_paired(values[::-1], [0.0] * 200)


def test_the_sign_flip_test_is_the_exact_one() -> None:
    differences = np.array([0.3, 1.1, -0.2, 0.9, 0.8, 0.4, -0.1, 0.7])
    flips = np.array(list(itertools.product((1, -1), repeat=8)))
    exact = np.mean(np.abs((flips * differences).mean(1)) >= abs(differences.mean()) - 1e-12)
    found = compare_paired([0.0] * 8, differences.tolist())
    assert found.mean == pytest.approx(differences.mean())
    assert found.p == pytest.approx(exact, abs=0.01)
    assert compare_paired([1.0, 2.0], [1.0, 2.0]).p == 1.0
    with pytest.raises(ValueError, match="no pairs"):
        compare_paired([1.0], [1.0, 2.0])


def test_holms_correction_by_hand() -> None:
    assert adjust({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "c": 0.06, "b": 0.06}
    )
