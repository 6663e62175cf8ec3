"""Pictures that wait for their job come back as they were, or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from nurie_serve.jobs.pixels import pack, unpack
from tests.serve.conftest import line_drawing

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([3, 4]))


@given(SHAPES.flatmap(lambda shape: arrays(np.uint8, shape)))
def test_a_picture_comes_back_as_it_was(pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    again = unpack(pack(image))
    assert again.mode == image.mode
    assert np.array_equal(np.asarray(again), pixels)


def test_a_drawing_takes_little_room() -> None:
    assert len(pack(line_drawing(512, 512))) < 512 * 512 * 3 / 50


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.95])
def test_a_cut_file_is_refused(share: float) -> None:
    data = pack(line_drawing(256, 256))
    with pytest.raises((OSError, ValueError)):
        unpack(data[: int(share * len(data))])
