"""Stage ``backbone``: aligned and misaligned branch, Gram regularization (method section 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nurie.config.train import DualBranchStage
from nurie.models.conditioning import Conditioning
from nurie.training.batch import TrainBatch
from nurie.training.draws import RowGenerators, StepDraws
from nurie.training.gram import gram_loss, gram_weight
from nurie.training.stages.base import LossOutput, TrainingStage


class BackboneTraining(TrainingStage):
    """Trains U-Net, sketch encoder and reference projection."""

    settings: DualBranchStage

    def trained_modules(self) -> list[nn.Module]:
        """The whole backbone."""
        return [self.model.unet, self.model.sketch_encoder, self.model.reference_projection]

    def loss(
        self, batch: TrainBatch, draws: StepDraws, step: int, generators: RowGenerators
    ) -> LossOutput:
        """Diffusion loss of the aligned branch plus the weighted Gram loss of the other.

        Both branches run as one batch: what they share is computed once, and the misaligned one
        ends after the last Gram block. Loss and gradients equal those of two passes.
        """
        weight = gram_weight(self.settings.gram, step, self.settings.steps)
        conditioning = Conditioning(
            batch.added_cond,
            draws.drop_sketch(self.model.sketch_encoder(batch.sketch)),
            self._reference_tokens(batch, draws, two_branches=weight > 0),
        )
        blocks = self.model.config.gram_block_ids if weight > 0 else ()
        out = self.model.unet(
            draws.noisy_latents, draws.timesteps, conditioning, capture=blocks, keep_branches=1
        )
        diffusion = self.diffusion_loss(out.sample, draws)
        parts = {"loss/diffusion": diffusion.detach()}
        total = diffusion
        for block in blocks:
            aligned, misaligned = out.blocks[block].float().split(batch.size)
            gram = gram_loss(
                misaligned,
                aligned,
                self.settings.gram.reduction,
                self._place_weights(batch, aligned.shape[1]),
            )
            total = total + weight * gram
            parts[f"loss/gram_block_{block}"] = gram.detach()
        parts["gram_weight"] = torch.tensor(weight)
        parts["dropped_references"] = (1 - draws.keep_reference).mean()
        return LossOutput(total, parts)

    def _reference_tokens(
        self, batch: TrainBatch, draws: StepDraws, two_branches: bool
    ) -> torch.Tensor:
        """Tokens of the aligned, then of the misaligned branch: ``R*B x N x D``."""
        rolled = two_branches and self.settings.gram.misaligned == "batch_roll"
        rows = 2 * batch.size if two_branches and not rolled else batch.size
        tokens = draws.drop_reference(
            self.model.reference_projection(batch.image_tokens[:rows], batch.tagger_tokens[:rows])
        )
        # Rolled after the drop: a dropped reference meets one that is kept, as it is published.
        return torch.cat([tokens, tokens.roll(1, dims=0)]) if rolled else tokens

    def _place_weights(self, batch: TrainBatch, places: int) -> torch.Tensor | None:
        """Foreground mask on a block's grid of places, ``B x N``, if the loss is weighted by it."""
        if not self.settings.gram.foreground_only:
            return None
        height, width = batch.latents.shape[-2:]
        scale = (places / (height * width)) ** 0.5
        grid = (round(height * scale), round(width * scale))
        return F.adaptive_avg_pool2d(batch.foreground_mask, grid).flatten(1)
