"""Stage ``foreground``: the foreground adapter on a frozen backbone (method section 7)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from nurie.config.train import ForegroundStage
from nurie.models.colorizer import ColorizationModel
from nurie.models.conditioning import Conditioning, ForegroundConditioning, RegionMask
from nurie.training.batch import TrainBatch
from nurie.training.draws import RowGenerators, StepDraws, draw_rows
from nurie.training.stages.base import LossOutput, TrainingStage

EncodeLatents = Callable[[torch.Tensor], torch.Tensor]
"""Pixels in [-1, 1] to normalised latents, without gradients."""


def random_threshold(generators: RowGenerators) -> torch.Tensor:
    """A mask threshold in 0.01..0.99 per sample (method section 6)."""
    return 0.01 + 0.98 * draw_rows(generators, lambda g: torch.rand((), generator=g))


class ForegroundTraining(TrainingStage):
    """Trains the foreground encoder and its injection.

    Args:
        model: The colorizer.
        settings: The stage's configuration.
        encode: The frozen autoencoder.
    """

    settings: ForegroundStage

    def __init__(
        self, model: ColorizationModel, settings: ForegroundStage, encode: EncodeLatents
    ) -> None:
        self._adapter: list[nn.Module] = [model.add_foreground_adapter()]
        super().__init__(model, settings)
        self.encode = encode

    def trained_modules(self) -> list[nn.Module]:
        """The adapter: encoder, zero layers and injection."""
        return self._adapter

    def loss(
        self, batch: TrainBatch, draws: StepDraws, step: int, generators: RowGenerators
    ) -> LossOutput:
        """Diffusion loss with the aligned reference's foreground injected inside the sketch's.

        Foreground and background queries would attend to the same reference tokens, so split
        attention would change nothing and is left out.
        """
        adapter, backbone = self.model.foreground_adapter, self.model
        assert adapter is not None and batch.reference_image is not None
        with torch.no_grad():
            white = torch.ones_like(batch.reference_image)
            masked = torch.where(batch.reference_mask > 0.5, batch.reference_image, white)
            latents = self.encode(masked)
            tokens = backbone.reference_projection(batch.image_tokens, batch.tagger_tokens)
            sketch = draws.drop_sketch(backbone.sketch_encoder(batch.sketch))
        threshold = random_threshold(generators).to(latents.device)
        conditioning = Conditioning(
            batch.added_cond,
            sketch,
            draws.drop_reference(tokens),
            foreground=ForegroundConditioning(
                adapter(latents), RegionMask(batch.foreground_mask, threshold), adapter.injection
            ),
        )
        out = backbone.unet(draws.noisy_latents, draws.timesteps, conditioning)
        diffusion = self.diffusion_loss(out.sample, draws)
        return LossOutput(diffusion, {"loss/diffusion": diffusion.detach()})
