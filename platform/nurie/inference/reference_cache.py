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
    is remembered. Tensors keep their layout in memory, and with it the last bits of what is
    computed from them: one picture alone comes out as it does without a cache.

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
            if len(rows) == 1:
                return rows[0]
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
            rows = [
                self._get(b"latents", one.float().cpu().numpy(), lambda one=one: encode(one))
                for one in pixels.split(1)
            ]
            return rows[0] if len(rows) == 1 else torch.cat(rows)

        return remembered

    def encode_features(
        self, encode: Callable[[torch.Tensor], list[torch.Tensor]]
    ) -> Callable[[torch.Tensor], list[torch.Tensor]]:
        """The foreground adapter, remembered; its features wait in main memory.

        Args:
            encode: Latents ``B x C x h x w`` to features ``B x N_i x C_i``.
        """

        def one(latents: torch.Tensor) -> list[torch.Tensor]:
            # Those of a large picture are as large as a part of the model.
            return [feature.cpu() for feature in encode(latents)]

        def remembered(latents: torch.Tensor) -> list[torch.Tensor]:
            rows = [
                self._get(b"features", each.float().cpu().numpy(), lambda each=each: one(each))
                for each in latents.split(1)
            ]
            whole = rows[0] if len(rows) == 1 else map(torch.cat, zip(*rows, strict=True))
            return [feature.to(latents.device) for feature in whole]

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
