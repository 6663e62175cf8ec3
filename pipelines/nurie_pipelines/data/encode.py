"""Frozen reference encoders as a Ray actor: pictures in, tokens out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

ENCODED = {"reference_image": "", "mismatched_image": "mismatched_"}
"""Picture columns and the prefix of their token columns."""


class EncodeReferences:
    """Ray actor that holds the image encoder and the tagger.

    Args:
        components: Model folder with ``image_encoder`` and ``tagger``.
        use_tagger: False gives zeros as tagger tokens.
    """

    def __init__(self, components: Path, use_tagger: bool) -> None:
        import torch
        from nurie.models.reference_encoder import ReferenceEncoder

        torch.set_num_threads(1)
        self._encoder = ReferenceEncoder.from_folder(components, use_tagger=use_tagger)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add the tokens; keep the aligned picture only beside its mask, where a stage uses it."""
        for column, prefix in ENCODED.items():
            if column in batch:
                image_tokens, tagger_tokens = self._encoder(batch[column])
                batch[f"{prefix}image_tokens"] = image_tokens.astype(np.float16)
                batch[f"{prefix}tagger_tokens"] = tagger_tokens.astype(np.float16)
        batch.pop("mismatched_image", None)
        if "reference_mask" not in batch:
            del batch["reference_image"]
        return batch
