"""The frozen encoders of a reference together: image tokens and tagger tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import CLIPVisionModelWithProjection

from nurie.data.tagger import Tagger
from nurie.models.image_encoder import image_tokens, preprocess

IMAGE_ENCODER_FOLDER = "image_encoder"
TAGGER_FOLDER = "tagger"


class ReferenceEncoder:
    """Turns reference pictures into the two token arrays of method section 3.

    NumPy in, NumPy out, so that it can run in processes of its own, away from the trainer.
    """

    def __init__(
        self,
        image_encoder: CLIPVisionModelWithProjection,
        tagger: Tagger,
        use_tagger: bool = True,
        device: str = "cpu",
    ) -> None:
        """Put two encoders together.

        Args:
            image_encoder: The image encoder.
            tagger: The tagger.
            use_tagger: False (ablation) gives zeros in place of the tagger's tokens.
            device: Where the image encoder runs.
        """
        self._image_encoder = image_encoder.eval().requires_grad_(False).to(device)
        self._image_size = image_encoder.config.image_size
        self._tagger = tagger
        self._use_tagger = use_tagger
        self._device = device

    @classmethod
    def from_folder(
        cls, folder: str | Path, use_tagger: bool = True, device: str = "cpu"
    ) -> ReferenceEncoder:
        """Open ``image_encoder/`` and ``tagger/`` of a model folder.

        Raises:
            FileNotFoundError: If the image encoder is missing.
            TaggerError: If the tagger is missing or cannot be used.
        """
        encoder_folder = Path(folder) / IMAGE_ENCODER_FOLDER
        if not (encoder_folder / "config.json").is_file():
            raise FileNotFoundError(
                f"no image encoder in {encoder_folder}: a model folder holds "
                f"{IMAGE_ENCODER_FOLDER}/config.json and its weights"
            )
        encoder = CLIPVisionModelWithProjection.from_pretrained(encoder_folder)
        return cls(encoder, Tagger.from_folder(Path(folder) / TAGGER_FOLDER), use_tagger, device)

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode references.

        Args:
            images: sRGB pictures, uint8 [B, H, W, 3].

        Returns:
            Image tokens, float32 [B, 1 + patches, D], and tagger tokens, float32 [B, cells, T].
        """
        pixels = preprocess(images, self._image_size).to(self._device)
        tokens = image_tokens(self._image_encoder, pixels).float().cpu().numpy()
        if self._use_tagger:
            return tokens, self._tagger.tokens(images)
        shape = self._tagger.tokens(images[:1]).shape[1:]
        return tokens, np.zeros((len(images), *shape), np.float32)
