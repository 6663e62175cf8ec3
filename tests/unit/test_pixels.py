"""The pictures inside the shards come back bit for bit."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nurie.data.pixels import decode_pixels, encode_pixels
from nurie.data.png import encode_png

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40)) | st.tuples(
    st.integers(1, 40), st.integers(1, 40), st.just(3)
)


@given(arrays.arrays(np.uint8, SHAPES))
def test_every_picture_comes_back(image):
    again = decode_pixels(encode_pixels(image))
    assert again.dtype == np.uint8
    assert np.array_equal(again, image)
    again[:] = 0  # writable


def painting() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    return cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_CUBIC)


def test_pictures_that_are_not_contiguous_and_large_ones():
    image = painting()
    assert np.array_equal(decode_pixels(encode_pixels(image[:, ::-1])), image[:, ::-1])
    assert np.array_equal(decode_pixels(encode_pixels(image[..., 1])), image[..., 1])
    wide = np.zeros((1, 65535), np.uint8)
    assert decode_pixels(encode_pixels(wide)).shape == wide.shape


def test_paintings_take_no_more_bytes_than_a_png():
    assert len(encode_pixels(painting())) < len(encode_png(painting()))


def test_both_forms_are_used():
    flat = np.zeros((64, 64), np.uint8)
    flat[::2] = np.random.default_rng(0).integers(0, 256, 64, np.uint8)
    assert {encode_pixels(picture)[5] for picture in (painting(), flat)} == {0, 1}


@pytest.mark.parametrize("change", [lambda d: d[:-9], lambda d: b"PNG" + d, lambda d: d[:6]])
def test_damage_is_an_error(change):
    with pytest.raises(ValueError, match="damaged picture of"):
        decode_pixels(change(encode_pixels(painting())))
