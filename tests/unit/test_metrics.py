"""Every metric against a closed form or a second implementation; worse pictures score worse."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, correlate1d, distance_transform_edt, gaussian_filter
from scipy.stats import wasserstein_distance

from nurie.evaluation.colour import (
    background_leak,
    bleeding,
    delta_e,
    dominant_colours,
    palette_distance,
    region_errors,
    to_lab,
)
from nurie.evaluation.fidelity import MAX_PSNR, ms_ssim_distance, psnr, ssim
from nurie.evaluation.lines import (
    DISTANCE_LIMIT,
    edge_distance,
    edge_f1,
    edges,
    line_distance_score,
    line_f1,
    shape_change,
)
from nurie.evaluation.measure import Picture, Reference, measure


def flat(*rgb: int, size: int = 64) -> np.ndarray:
    return np.full((size, size, 3), rgb, np.uint8)


def disk(colour: tuple[int, int, int], x: int = 32, radius: int = 14) -> np.ndarray:
    """A filled disk with a black outline on white."""
    rows, columns = np.mgrid[:64, :64]
    distance = np.hypot(rows - 32, columns - x)
    image = flat(255, 255, 255)
    image[distance < radius] = colour
    image[np.abs(distance - radius) < 1.0] = 0
    return image


@pytest.fixture
def picture() -> np.ndarray:
    return disk((200, 80, 60))


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(0.0, 1.0, (64, 64, 3))


def noisy(image: np.ndarray, noise: np.ndarray, sigma: float) -> np.ndarray:
    return np.clip(image + sigma * noise, 0, 255).astype(np.uint8)


# PSNR


def test_psnr_of_a_constant_difference_does_not_wrap() -> None:
    # In uint8, 10 - 12 is 254 and 254 * 254 is 4.
    expected = 20 * math.log10(255 / 2)
    assert psnr(flat(10, 10, 10), flat(12, 12, 12)) == pytest.approx(expected, abs=1e-9)
    assert psnr(flat(12, 12, 12), flat(10, 10, 10)) == pytest.approx(expected, abs=1e-9)
    assert psnr(flat(0, 0, 0), flat(255, 255, 255)) == pytest.approx(0.0, abs=1e-9)


def test_psnr_of_unrelated_pictures_is_low_where_bytes_say_28_db() -> None:
    # Two pictures of uniform noise: the mean square difference is 1/6 of the range's square.
    one, two = np.random.default_rng(0).integers(256, size=(2, 256, 256, 3)).astype(np.uint8)
    assert psnr(one, two) == pytest.approx(10 * math.log10(6), abs=0.05)
    wrapped = 10 * math.log10(255**2 / np.mean((one - two) ** 2))
    assert wrapped == pytest.approx(27.9, abs=0.2)


def test_psnr_knows_its_ranges(picture: np.ndarray) -> None:
    assert psnr(picture, picture) == MAX_PSNR
    assert psnr(picture / 255.0, picture) == MAX_PSNR
    with pytest.raises(ValueError, match=r"0\.\.1"):
        psnr(picture.astype(np.float32), picture)
    with pytest.raises(ValueError, match="int64"):
        psnr(picture.astype(np.int64), picture)
    with pytest.raises(ValueError, match="not comparable"):
        psnr(picture[:32], picture)


# Structure


def reference_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """SSIM per channel, written anew on scipy."""
    offsets = np.arange(-5, 6)
    kernel = np.exp(-(offsets**2) / (2 * 1.5**2))
    kernel /= kernel.sum()

    def blur(x: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(x, kernel, axis=0), kernel, axis=1)[5:-5, 5:-5]

    values = []
    for channel in range(3):
        a, b = first[..., channel] / 255.0, second[..., channel] / 255.0
        mu_a, mu_b = blur(a), blur(b)
        sigma_a, sigma_b = blur(a * a) - mu_a**2, blur(b * b) - mu_b**2
        sigma_ab = blur(a * b) - mu_a * mu_b
        top = (2 * mu_a * mu_b + 1e-4) * (2 * sigma_ab + 9e-4)
        values.append((top / ((mu_a**2 + mu_b**2 + 1e-4) * (sigma_a + sigma_b + 9e-4))).mean())
    return float(np.mean(values))


def test_ssim_of_flat_pictures_has_a_closed_form() -> None:
    a, b, c1 = 51 / 255, 204 / 255, 0.01**2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert ssim(flat(51, 51, 51), flat(204, 204, 204)) == pytest.approx(expected, abs=1e-6)


def test_ssim_equals_a_second_implementation(picture: np.ndarray, noise: np.ndarray) -> None:
    other = noisy(picture, noise, 30)
    assert ssim(picture, other) == pytest.approx(reference_ssim(picture, other), abs=1e-9)
    assert ssim(picture, picture) == pytest.approx(1.0)


def test_ms_ssim_of_flat_pictures_has_a_closed_form() -> None:
    # Structure terms are 1; luminance counts on the last of three scales only.
    a, b, c1 = 51 / 255, 204 / 255, 0.01**2
    luminance = (2 * a * b + c1) / (a * a + b * b + c1)
    share = 0.3001 / (0.0448 + 0.2856 + 0.3001)
    distance = ms_ssim_distance(flat(51, 51, 51), flat(204, 204, 204))
    assert distance == pytest.approx(1 - luminance**share, abs=1e-6)


def test_ms_ssim_equals_a_second_implementation(picture: np.ndarray, noise: np.ndarray) -> None:
    # Three scales fit into 64 pixels: contrast and structure of the first two, all of the last.
    other, c1, c2 = noisy(picture, noise, 30), 0.01**2, 0.03**2
    a, b, product = picture / 255.0, other / 255.0, 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001)):
        (mu_a, mu_b), (square_a, square_b) = (
            [gaussian_filter(x, (1.5, 1.5, 0), radius=(5, 5, 0))[5:-5, 5:-5] for x in pair]
            for pair in ((a, b), (a * a, b * b))
        )
        both = gaussian_filter(a * b, (1.5, 1.5, 0), radius=(5, 5, 0))[5:-5, 5:-5]
        variances = square_a - mu_a**2 + square_b - mu_b**2
        term = (2 * (both - mu_a * mu_b) + c2) / (variances + c2)
        if scale == 2:
            term = term * (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1)
        product *= term.mean() ** (weight / (0.0448 + 0.2856 + 0.3001))
        a, b = (x.reshape(len(x) // 2, 2, len(x) // 2, 2, 3).mean(axis=(1, 3)) for x in (a, b))
    assert ms_ssim_distance(picture, other) == pytest.approx(1 - product, abs=1e-9)


def test_more_noise_is_further_away(picture: np.ndarray, noise: np.ndarray) -> None:
    little, much = noisy(picture, noise, 10), noisy(picture, noise, 60)
    assert ms_ssim_distance(picture, picture) == pytest.approx(0.0, abs=1e-9)
    assert 0 < ms_ssim_distance(little, picture) < ms_ssim_distance(much, picture) <= 1
    assert ssim(much, picture) < ssim(little, picture) < 1
    assert psnr(much, picture) < psnr(little, picture)


def test_tiny_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(flat(0, 0, 0, size=10), flat(0, 0, 0, size=10))


# Colour


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((255, 0, 0), (53.2408, 80.0925, 67.2032)),
        ((0, 255, 0), (87.7347, -86.1827, 83.1793)),
        ((0, 0, 255), (32.2970, 79.1875, -107.8602)),
        ((119, 119, 119), (50.0344, 0.0, 0.0)),
    ],
)
def test_lab_has_the_published_values(rgb: tuple[int, ...], lab: tuple[float, ...]) -> None:
    np.testing.assert_allclose(to_lab(flat(*rgb, size=1))[0, 0], lab, atol=0.02)


def test_lab_is_near_the_table_of_opencv() -> None:
    image = np.random.default_rng(0).random((32, 32, 3))
    table = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2LAB)
    np.testing.assert_allclose(to_lab(image), table, atol=1.0)


def lab_distance(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    return math.dist(to_lab(flat(*first, size=1))[0, 0], to_lab(flat(*second, size=1))[0, 0])


def test_delta_e_is_the_lab_distance() -> None:
    expected = math.dist((53.2408, 80.0925, 67.2032), (32.2970, 79.1875, -107.8602))
    differences = delta_e(flat(255, 0, 0), flat(0, 0, 255))
    assert differences.shape == (64, 64)
    np.testing.assert_allclose(differences, expected, atol=0.02)


def test_region_errors_stay_in_their_region() -> None:
    truth = flat(255, 255, 255)
    truth[:, 32:] = (90, 60, 30)
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 32:] = 2
    result = truth.copy()
    result[:, 32:] = (30, 60, 90)
    result[:8, 32:] = (0, 255, 0)  # An eighth: in mean and percentile, not in the median.
    errors = region_errors(result, truth, labels, ["background", "hair", "skin"])
    assert set(errors) == {"background", "skin"}
    assert errors["background"] == (0.0, 0.0, 0.0)
    swapped = lab_distance((90, 60, 30), (30, 60, 90))
    green = lab_distance((90, 60, 30), (0, 255, 0))
    assert errors["skin"].mean == pytest.approx((7 * swapped + green) / 8)
    assert errors["skin"].p95 == pytest.approx(green)
    assert errors["skin"].median_colours == pytest.approx(swapped)


def test_palette_distance_ignores_places_and_measures_shifts(picture: np.ndarray) -> None:
    shuffled = np.random.default_rng(0).permutation(picture.reshape(-1, 3)).reshape(picture.shape)
    assert palette_distance(picture, shuffled) == pytest.approx(0.0, abs=1e-6)
    assert palette_distance(picture, np.tile(picture, (2, 2, 1))) == pytest.approx(0.0, abs=0.5)
    for other in [(220, 30, 30), (60, 90, 220)]:
        expected = delta_e(flat(128, 128, 128), flat(*other)).mean()
        measured = palette_distance(flat(128, 128, 128), flat(*other))
        assert measured == pytest.approx(expected, rel=0.03)


def test_palette_distance_counts_masked_pixels_only(picture: np.ndarray) -> None:
    other = picture.copy()
    other[:8] = (0, 255, 0)
    mask = np.ones((64, 64), bool)
    mask[:8] = False
    assert palette_distance(picture, other) > 5
    assert palette_distance(picture, other, mask, mask) == pytest.approx(0.0, abs=1e-6)


def test_palette_distance_is_the_mean_of_scipys_along_any_line(picture: np.ndarray) -> None:
    other = np.roll(picture, 40, axis=2)
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(400, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    one, two = (to_lab(image).reshape(-1, 3) for image in (picture, other))
    expected = 2 * np.mean([wasserstein_distance(one @ d, two @ d) for d in directions])
    assert palette_distance(picture, other) == pytest.approx(expected, rel=0.05)


def test_dominant_colours_are_those_that_were_laid() -> None:
    image = flat(200, 40, 40)
    image[:20] = (30, 90, 200)
    image[0, :5] = (0, 255, 0)  # Too few to matter.
    pixels = to_lab(image).reshape(-1, 3)
    found = dominant_colours(pixels)
    expected = to_lab(np.array([[(200, 40, 40), (30, 90, 200)]], np.uint8))[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    shuffled = np.random.default_rng(1).permutation(pixels)
    np.testing.assert_allclose(dominant_colours(shuffled), found, atol=1e-9)


def halves(left: tuple[int, int, int], right: tuple[int, int, int], at: int) -> np.ndarray:
    image = flat(*left)
    image[:, at:] = right
    return image


def test_bleeding_counts_colours_beyond_their_border() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 32:] = 1
    paper = np.full((64, 64), 255, np.uint8)
    red, blue = (220, 30, 30), (40, 60, 220)
    assert bleeding(halves(red, blue, 32), labels, paper) == 0.0
    # Red runs 3 pixels over: of the 3 looked at on each side (the nearest is left out) 2 bleed.
    assert bleeding(halves(red, blue, 35), labels, paper) == pytest.approx(2 / 6)
    assert bleeding(halves(red, blue, 34), labels, paper) == pytest.approx(1 / 6)
    # Wrong colours inside their lines do not bleed; equal colours have no border to cross.
    assert bleeding(halves((10, 200, 10), (250, 250, 0), 32), labels, paper) == 0.0
    assert bleeding(halves(red, red, 32), labels, paper) is None
    lines = paper.copy()
    lines[:, 32:35] = 0
    assert bleeding(halves(red, blue, 35), labels, lines) == 0.0


def test_background_leak_counts_the_references_background_in_the_foreground() -> None:
    red, green = (220, 30, 30), (30, 160, 60)
    reference, reference_mask = halves(red, green, 32), np.zeros((64, 64), bool)
    reference_mask[:, :32] = True
    mask = np.zeros((64, 64), bool)
    mask[10:54, 10:54] = True
    leaking = flat(*red)
    leaking[:32] = green  # 20 of the 40 rows that are 2 pixels away from the border.
    assert background_leak(flat(*red), mask, reference, reference_mask) == 0.0
    assert background_leak(leaking, mask, reference, reference_mask) == pytest.approx(0.5)
    assert background_leak(flat(*green), mask, reference, reference_mask) == 1.0
    assert background_leak(flat(0, 0, 255), mask, reference, reference_mask) == 0.0
    assert background_leak(leaking, mask, reference, np.ones((64, 64), bool)) is None


# Shape


def test_edge_f1_has_a_closed_form() -> None:
    first, second = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    first[5, :] = True
    second[6, :] = True
    second[15, :] = True  # Precision 1/2, recall 1.
    assert edge_f1(first, second, tolerance=1) == pytest.approx(2 / 3)
    assert edge_f1(first, second, tolerance=0) == 0.0
    assert edge_f1(first, first) == 1.0
    assert edge_f1(first, np.zeros_like(first)) == 0.0
    assert edge_f1(np.zeros_like(first), np.zeros_like(first)) == 1.0


def test_colours_change_no_shape_and_moves_do() -> None:
    red, blue, moved = disk((200, 80, 60)), disk((70, 90, 210)), disk((70, 90, 210), x=44)
    assert shape_change(red, blue) < 0.05
    assert shape_change(red, moved) > 0.5


def test_line_f1_rewards_the_sketch_lines() -> None:
    sketch = disk((255, 255, 255))[..., 0]
    good, moved = disk((200, 80, 60)), disk((200, 80, 60), x=44)
    assert line_f1(sketch, good) > 0.9
    assert line_f1(sketch, moved) < 0.5
    extra = np.maximum(good, 0)
    extra[4:12, 4:60] = 0
    assert line_f1(sketch, moved) < line_f1(sketch, extra) < line_f1(sketch, good)


def test_line_f1_is_that_of_scipys_dilation() -> None:
    sketch, result = disk((255, 255, 255))[..., 0], disk((200, 80, 60), x=35)
    near = np.ones((5, 5), bool)
    near[[0, 0, 0, 0, 4, 4, 4, 4], [0, 1, 3, 4, 0, 1, 3, 4]] = False  # 2 pixels around
    lines, found = edges(sketch), edges(result)
    precision = binary_dilation(lines, near)[found].mean()
    recall = binary_dilation(found, near)[lines].mean()
    expected = 2 / (1 / precision + 1 / recall)
    assert 0.3 < expected < 0.9
    assert line_f1(sketch, result) == pytest.approx(expected, abs=1e-12)
    assert shape_change(disk((70, 90, 210)), result) == pytest.approx(
        1 - edge_f1(edges(disk((70, 90, 210))), found), abs=1e-12
    )


def test_edge_distance_is_scipys() -> None:
    first, second = edges(disk((200, 80, 60))), edges(disk((200, 80, 60), x=35))
    both = [
        np.minimum(distance_transform_edt(~far), DISTANCE_LIMIT)[near].mean()
        for near, far in ((first, second), (second, first))
    ]
    assert edge_distance(first, second) == pytest.approx(np.mean(both), abs=1e-4)
    empty = np.zeros_like(first)
    assert edge_distance(first, empty) == DISTANCE_LIMIT
    assert edge_distance(empty, empty) == 0.0
    with pytest.raises(ValueError, match="shapes"):
        edge_distance(first, empty[:32])


def test_line_distance_score_falls_with_every_pixel() -> None:
    sketch = disk((255, 255, 255))[..., 0]
    scores = [line_distance_score(sketch, disk((200, 80, 60), x=x)) for x in (32, 34, 38)]
    assert scores[0] > 0.9
    assert scores[0] > scores[1] > scores[2]


# All at once


def test_differences_to_the_truth_by_hand() -> None:
    truth, sketch = flat(255, 255, 255), np.full((64, 64), 255, np.uint8)
    result = truth.copy()
    result[:16], result[16:19] = (90, 60, 30), (0, 0, 0)  # 25.0% and 4.7% of all
    found = measure(result, Picture(truth, sketch), Reference(truth))
    brown = lab_distance((255, 255, 255), (90, 60, 30))
    assert found["delta_e"] == pytest.approx((16 * brown + 3 * 100) / 64)
    assert found["delta_e_p95"] == pytest.approx(brown)
    # Brown and black lie on about the same side of white, so that their distances add up.
    assert found["palette_to_truth"] == found["palette_to_reference"]
    assert found["palette_to_truth"] == pytest.approx(found["delta_e"], rel=0.05)


def test_what_is_measured_follows_from_what_is_known() -> None:
    truth, sketch = disk((200, 80, 60)), disk((255, 255, 255))[..., 0]
    labels = (np.hypot(*(np.mgrid[:64, :64] - 32)) < 14).astype(np.uint8)
    sample = Picture(truth, sketch, "ink", labels > 0, labels, ["background", "hair"])
    reference = Reference(truth, labels > 0)
    everything = measure(truth, sample, reference)
    assert everything["psnr"] == MAX_PSNR
    assert everything["lab_p95_error/hair"] == 0.0
    assert everything["background_leak"] == 0.0
    assert everything["bleeding"] == 0.0
    least = measure(truth, Picture(None, sketch), Reference(truth))
    assert set(least) == {"line_f1", "line_distance_score", "palette_to_reference"}
    assert all(everything[name] == value for name, value in least.items() if "palette" not in name)
