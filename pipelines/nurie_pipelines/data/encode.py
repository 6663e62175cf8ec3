"""The frozen encoders as a feed uses them: pictures in, tokens and latents out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nurie.config.train import BackgroundStage, ForegroundStage, Stage
from nurie_pipelines.data.latents import LatentEncoder

REFERENCES = {"reference_image": "", "mismatched_image": "mismatched_"}
"""Picture columns and the prefix of their token columns."""


class FrozenEncoders:
    """Holds the image encoder, the tagger and, where needed, the autoencoder.

    Args:
        components: Model folder with ``image_encoder``, ``tagger`` and ``vae``.
        use_tagger: False gives zeros as tagger tokens.
        stage: Decides which pictures the trainer still needs after they are encoded.
        device: Where image encoder and autoencoder compute.
    """

    def __init__(
        self, components: Path, use_tagger: bool, stage: Stage, device: str = "cpu"
    ) -> None:
        import torch

        from nurie.models.reference_encoder import ReferenceEncoder

        torch.set_num_threads(1)
        self._references = ReferenceEncoder.from_folder(
            components, use_tagger=use_tagger, device=device
        )
        self._components, self._device = components, device
        self._latents: LatentEncoder | None = None
        kept: set[str] = set()
        if isinstance(stage, ForegroundStage):
            kept = {"reference_image"}
        elif isinstance(stage, BackgroundStage):
            kept = {"image"}
        self._dropped = {*REFERENCES, "image"} - kept

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add tokens and missing latents, drop the pictures that the stage does not use."""
        for column, prefix in REFERENCES.items():
            if column in batch:
                image_tokens, tagger_tokens = self._references(batch[column])
                batch[f"{prefix}image_tokens"] = image_tokens.astype(np.float16)
                batch[f"{prefix}tagger_tokens"] = tagger_tokens.astype(np.float16)
        if "latents" not in batch:
            batch["latents"] = self._latent_encoder().encode(batch["image"])
        return {name: values for name, values in batch.items() if name not in self._dropped}

    def _latent_encoder(self) -> LatentEncoder:
        """Load the autoencoder at its first use: shards with latents never need it."""
        if self._latents is None:
            self._latents = LatentEncoder(self._components / "vae", self._device)
        return self._latents
