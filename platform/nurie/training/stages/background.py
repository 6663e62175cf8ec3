"""Stage ``background``: the background encoder and LoRA on a frozen backbone (method section 7)."""

from __future__ import annotations

import torch
from torch import nn

from nurie.config.train import BackgroundStage
from nurie.models.added_embedding import FULL_CROP, embed_scalars
from nurie.models.background_encoder import background_input
from nurie.models.colorizer import ColorizationModel
from nurie.models.conditioning import BackgroundConditioning, Conditioning, RegionMask
from nurie.training.batch import TrainBatch
from nurie.training.draws import RowGenerators, StepDraws
from nurie.training.stages.base import LossOutput, TrainingStage
from nurie.training.stages.foreground import EncodeLatents, random_threshold


class BackgroundTraining(TrainingStage):
    """Trains the background encoder and the LoRA of the U-Net's cross-attention.

    Args:
        model: The colorizer.
        settings: The stage's configuration.
        encode: The frozen autoencoder.
    """

    settings: BackgroundStage

    def __init__(
        self, model: ColorizationModel, settings: BackgroundStage, encode: EncodeLatents
    ) -> None:
        self._encoder = [model.add_background_encoder()]
        self._lora = [m for n, m in model.unet.named_modules() if n.endswith(("lora_A", "lora_B"))]
        super().__init__(model, settings)
        self.encode = encode

    def trained_modules(self) -> list[nn.Module]:
        """The encoder and the LoRA's matrices."""
        return [*self._encoder, *self._lora]

    def clean_latents(self, batch: TrainBatch) -> torch.Tensor:
        """Latents of the picture, which bleaching may have changed."""
        assert batch.image is not None
        with torch.no_grad():
            return self.encode(batch.image)

    def loss(
        self, batch: TrainBatch, draws: StepDraws, step: int, generators: RowGenerators
    ) -> LossOutput:
        """Diffusion loss; background queries of the up path see the reference's tokens instead."""
        encoder, backbone = self.model.background_encoder, self.model
        assert encoder is not None and batch.background_image is not None
        assert batch.reference_mask is not None
        with torch.no_grad():
            latents = self.encode(batch.background_image)
            tokens = backbone.reference_projection(batch.image_tokens, batch.tagger_tokens)
            sketch = draws.drop_sketch(backbone.sketch_encoder(batch.sketch))
        crops = torch.tensor([FULL_CROP] * batch.size, device=latents.device)
        crop = embed_scalars(crops, encoder.config.added_embedding_dim)
        bank = encoder(background_input(latents, batch.foreground_mask, batch.reference_mask), crop)
        threshold = random_threshold(generators).to(latents.device)
        conditioning = Conditioning(
            batch.added_cond,
            sketch,
            draws.drop_reference(tokens),
            background=BackgroundConditioning(bank, RegionMask(batch.foreground_mask, threshold)),
        )
        out = backbone.unet(draws.noisy_latents, draws.timesteps, conditioning)
        diffusion = self.diffusion_loss(out.sample, draws)
        return LossOutput(diffusion, {"loss/diffusion": diffusion.detach()})
