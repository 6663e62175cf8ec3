"""What was made of a reference is remembered: artists try one reference on many sketches."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from nurie.inference.conditioning import EncodeImages


class ReferenceCache:
    """Encodings of the newest references, by the digest of their pixels.

    Pictures are encoded one at a time, so that a result depends neither on the batch nor on what
    is remembered.

    Args:
        max_entries: Encodings kept; the one that was not used for longest goes first.
    """

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._kept: OrderedDict[bytes, Any] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def encode_images(self, encode: EncodeImages) -> EncodeImages:
        """The reference encoders, remembered.

        Args:
            encode: Pictures ``B x H x W x 3`` uint8 to two arrays of tokens.
        """

        def remembered(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            rows = [
                self._get(b"tokens", image, lambda one=image: encode(one[None])) for image in images
            ]
            first, second = (np.concatenate(parts) for parts in zip(*rows, strict=True))
            return first, second

        return remembered

    def encode_latents(
        self, encode: Callable[[torch.Tensor], torch.Tensor]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """The autoencoder, remembered.

        Args:
            encode: Pixels ``B x 3 x H x W`` in [-1, 1] to latents.
        """

        def remembered(pixels: torch.Tensor) -> torch.Tensor:
            return torch.cat(
                [
                    self._get(
                        b"latents", one.float().cpu().numpy(), lambda one=one: encode(one[None])
                    )
                    for one in pixels
                ]
            )

        return remembered

    def _get(self, kind: bytes, content: np.ndarray, make: Callable[[], Any]) -> Any:
        shape = str(content.shape).encode()
        key = hashlib.sha256(kind + shape + np.ascontiguousarray(content).tobytes()).digest()
        if key in self._kept:
            self.hits += 1
            self._kept.move_to_end(key)
            return self._kept[key]
        self.misses += 1
        made = self._kept[key] = make()
        if len(self._kept) > self._max_entries:
            self._kept.popitem(last=False)
        return made
