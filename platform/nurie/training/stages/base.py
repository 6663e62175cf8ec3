"""What every training stage is: a module whose forward pass gives the loss of one batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from nurie.config.train import StageBase
from nurie.diffusion.process import alphas_cumprod, min_snr_weight
from nurie.models.colorizer import ColorizationModel
from nurie.training.batch import TrainBatch
from nurie.training.draws import RowGenerators, StepDraws, draw_step


@dataclass(frozen=True)
class LossOutput:
    """Loss of one batch.

    Args:
        total: Scalar to minimise.
        parts: Detached scalars by name, for the logs.
    """

    total: torch.Tensor
    parts: dict[str, torch.Tensor] = field(default_factory=dict)


class TrainingStage(nn.Module, ABC):
    """One stage of the chain.

    Args:
        model: The colorizer; the stage decides what of it is trained.
        settings: The stage's part of the configuration.
    """

    def __init__(self, model: ColorizationModel, settings: StageBase) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        # No buffer: an engine of half precision would round it.
        self.alphas_cumprod = alphas_cumprod(model.config.diffusion).float()
        self.autocast_dtype: torch.dtype | None = None
        self.memory_format = torch.contiguous_format
        model.requires_grad_(False)
        for part in self.trained_modules():
            part.requires_grad_(True)

    @abstractmethod
    def trained_modules(self) -> list[nn.Module]:
        """The modules whose parameters this stage trains; everything else is frozen."""

    @abstractmethod
    def loss(
        self, batch: TrainBatch, draws: StepDraws, step: int, generators: RowGenerators
    ) -> LossOutput:
        """Loss of a batch; see ``forward``."""

    def forward(self, batch: TrainBatch, step: int, generators: RowGenerators) -> LossOutput:
        """Draws the step's random numbers and computes the loss.

        Args:
            batch: Samples.
            step: Optimizer step, for schedules.
            generators: One per sample.
        """
        latents = self.clean_latents(batch).contiguous(memory_format=self.memory_format)
        draws = draw_step(latents, self.alphas_cumprod, self.settings, generators)
        half = self.autocast_dtype
        with torch.autocast(latents.device.type, half, enabled=half is not None):
            return self.loss(batch, draws, step, generators)

    def clean_latents(self, batch: TrainBatch) -> torch.Tensor:
        """The latents to denoise; a stage that changes the picture encodes its own."""
        return batch.latents

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names (within the colorizer) and parameters that this stage trains."""
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)

    def diffusion_loss(self, prediction: torch.Tensor, draws: StepDraws) -> torch.Tensor:
        """Mean squared error on v; in training with min-SNR weights when they are switched on."""
        per_sample = (prediction.float() - draws.target.float()).square().mean((1, 2, 3))
        if self.settings.snr_gamma is not None and self.training:
            per_sample = per_sample * min_snr_weight(draws.alphas, self.settings.snr_gamma)
        return per_sample.mean()
