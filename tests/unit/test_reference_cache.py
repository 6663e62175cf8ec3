"""Encodings of references are remembered by content, and the picture stays the same."""

from __future__ import annotations

import numpy as np
import torch

from nurie.inference.reference_cache import ReferenceCache


def test_equal_pictures_are_encoded_once() -> None:
    seen: list[int] = []

    def encode(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(len(images))
        return images.mean((1, 2)), images.max((1, 2)).astype(float)

    cache = ReferenceCache(2)
    remembered = cache.encode_images(encode)
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(3))
    batch = np.stack([a, b, a])
    for got, expected in zip(remembered(batch), encode(batch), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert seen == [1, 1, 3], "one at a time, the last call being this test's"
    assert (cache.hits, cache.misses) == (1, 2)
    remembered(c[None])
    remembered(a[None])
    assert (cache.hits, cache.misses) == (2, 3), "b went, it was not used for longest"
    remembered(b[None])
    assert cache.misses == 4


def test_latents_and_tokens_are_not_confused() -> None:
    cache = ReferenceCache(8)
    latents = cache.encode_latents(lambda pixels: pixels * 2)
    tokens = cache.encode_images(lambda images: (images, images))
    zeros = np.zeros((1, 4, 4, 3), np.float32)
    tokens(zeros)
    assert latents(torch.zeros(2, 4, 4, 3)).shape == (2, 4, 4, 3)
    assert (cache.hits, cache.misses) == (1, 2)
    changed = torch.zeros(1, 4, 4, 3)
    changed[0, 0, 0, 0] = 1e-3
    assert latents(changed)[0, 0, 0, 0] == 2e-3
