"""Both reference encoders together, with the bundled nano weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nurie.models.reference_encoder import ReferenceEncoder

NANO = Path(__file__).resolve().parents[2] / "assets" / "nano"


@pytest.fixture(scope="module")
def red_and_blue() -> np.ndarray:
    pictures = np.zeros((2, 128, 128, 3), np.uint8)
    pictures[0, ..., 0], pictures[1, ..., 2] = 255, 255
    return pictures


def test_colours_are_in_both_kinds_of_tokens(red_and_blue):
    image, tagger = ReferenceEncoder.from_folder(NANO)(red_and_blue)

    assert image.shape == (2, 65, 96)
    assert tagger.shape == (2, 64, 64)
    assert image.dtype == tagger.dtype == np.float32
    assert np.abs(image[0] - image[1]).mean() > 0.1
    assert np.abs(tagger[0] - tagger[1]).mean() > 0.1


def test_without_tagger_its_tokens_are_zeros(red_and_blue):
    with_tagger, _ = ReferenceEncoder.from_folder(NANO)(red_and_blue)
    image, tagger = ReferenceEncoder.from_folder(NANO, use_tagger=False)(red_and_blue)

    np.testing.assert_array_equal(image, with_tagger)
    assert tagger.shape == (2, 64, 64)
    assert not tagger.any()


def test_missing_encoder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image encoder in"):
        ReferenceEncoder.from_folder(tmp_path)
