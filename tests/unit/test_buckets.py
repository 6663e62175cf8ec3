"""Aspect buckets: which shape a picture gets, and how it is cut."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nurie.data.buckets import SIDE_MULTIPLE, Bucket, fit, make_buckets, nearest_bucket

RATIOS = (0.5, 0.75, 1.0, 4 / 3, 2.0)


@pytest.mark.parametrize("size", [512, 1024])
def test_buckets_have_about_one_area_and_the_asked_shapes(size):
    buckets = make_buckets(size, RATIOS)
    assert len(buckets) == len(RATIOS)
    for bucket, ratio in zip(sorted(buckets, reverse=True), RATIOS, strict=True):
        assert bucket.height % SIDE_MULTIPLE == bucket.width % SIDE_MULTIPLE == 0
        assert bucket.height * bucket.width == pytest.approx(size**2, rel=0.07)
        assert bucket.width / bucket.height == pytest.approx(ratio, rel=0.07)
        assert Bucket.parse(bucket.name) == bucket


def test_ratios_that_round_to_one_shape_are_one_bucket():
    assert make_buckets(64, (0.95, 1.0, 1.05)) == [Bucket(64, 64)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1000, 1000), 1.0), ((600, 1300), 0.5), ((1200, 1000), 4 / 3), ((3000, 1000), 2.0)],
)
def test_a_picture_gets_the_nearest_shape(size, expected):
    bucket = nearest_bucket(*size, make_buckets(1024, RATIOS))
    assert bucket.width / bucket.height == pytest.approx(expected, rel=0.07)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(make_buckets(64, RATIOS)))
def test_every_size_fits_every_bucket(height, width, bucket):
    grey = np.full((height, width), 77, np.uint8)
    assert (fit(grey, bucket) == np.full(bucket, 77)).all()
    assert fit(np.dstack([grey] * 3), bucket).shape == (*bucket, 3)


def test_the_middle_is_kept_and_nothing_is_stretched():
    image = np.zeros((100, 300), np.uint8)
    cv2.circle(image, (150, 50), 30, 255, -1)
    cut = fit(image, Bucket(50, 50)) > 127
    rows, columns = np.flatnonzero(cut.any(1)), np.flatnonzero(cut.any(0))
    assert np.ptp(rows) == np.ptp(columns) == pytest.approx(30, abs=1)
    assert rows.mean() == columns.mean() == pytest.approx(24.5, abs=0.6)


def test_a_mask_stays_a_mask():
    mask = np.where(np.random.default_rng(0).random((90, 70)) > 0.5, 255, 0).astype(np.uint8)
    for bucket in (Bucket(32, 64), Bucket(128, 128)):
        assert set(np.unique(fit(mask, bucket, cv2.INTER_NEAREST))) <= {0, 255}
