"""Stage ``finetune``: a LoRA on the frozen backbone, with the backbone's loss."""

from __future__ import annotations

from torch import nn

from nurie.config.train import FinetuneStage
from nurie.models.colorizer import ATTENTION_TARGETS, ColorizationModel, add_lora
from nurie.training.stages.backbone import BackboneTraining

FINETUNE_LORA = "finetune"
"""Name of the LoRA; it is merged into the weights when the stage is exported."""


class FinetuneTraining(BackboneTraining):
    """Trains low-rank changes of the U-Net's attention layers.

    Args:
        model: The colorizer.
        settings: The stage's configuration.
    """

    def __init__(self, model: ColorizationModel, settings: FinetuneStage) -> None:
        add_lora(model.unet, settings.rank, FINETUNE_LORA, ATTENTION_TARGETS)
        super().__init__(model, settings)

    def trained_modules(self) -> list[nn.Module]:
        """The LoRA's matrices."""
        modules = self.model.unet.named_modules()
        return [module for name, module in modules if name.endswith(("lora_A", "lora_B"))]
