"""The training stages; ``build_stage`` is the only place that maps a kind to its class."""

from __future__ import annotations

from nurie.config.train import (
    BackgroundStage,
    DualBranchStage,
    FinetuneStage,
    ForegroundStage,
    StageBase,
)
from nurie.models.colorizer import ColorizationModel
from nurie.training.stages.backbone import BackboneTraining
from nurie.training.stages.background import BackgroundTraining
from nurie.training.stages.base import LossOutput, TrainingStage
from nurie.training.stages.finetune import FinetuneTraining
from nurie.training.stages.foreground import EncodeLatents, ForegroundTraining

__all__ = ["LossOutput", "TrainingStage", "build_stage"]


def build_stage(
    model: ColorizationModel, settings: StageBase, encode: EncodeLatents
) -> TrainingStage:
    """The training module of a stage.

    Args:
        model: The colorizer; adapters are added as the stage needs them.
        settings: The stage's configuration, whose type decides.
        encode: The frozen autoencoder.
    """
    match settings:
        case FinetuneStage():
            return FinetuneTraining(model, settings)
        case DualBranchStage():
            return BackboneTraining(model, settings)
        case ForegroundStage():
            return ForegroundTraining(model, settings, encode)
        case BackgroundStage():
            return BackgroundTraining(model, settings, encode)
    raise TypeError(f"no training stage for {type(settings).__name__}")
