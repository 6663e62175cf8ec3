"""What executes a training step: DeepSpeed ZeRO or plain torch behind one protocol."""

from __future__ import annotations

from nurie.config.train import EngineConfig
from nurie.training.stages import TrainingStage
from nurie_pipelines.train.engines.base import Engine, Fragment
from nurie_pipelines.train.engines.deepspeed import DeepSpeedEngine
from nurie_pipelines.train.engines.optimizer import build_optimizer
from nurie_pipelines.train.engines.plain import TorchEngine
from nurie_pipelines.train.engines.prepare import prepare

__all__ = ["Engine", "Fragment", "build_engine"]


def build_engine(stage: TrainingStage, config: EngineConfig, world_size: int) -> Engine:
    """Builds the configured engine around a stage; the process group exists already.

    Args:
        stage: The stage, on its device.
        config: The engine's part of the run's configuration.
        world_size: Workers there are.
    """
    prepare(stage, config)
    optimizer = build_optimizer(stage)
    if config.kind == "deepspeed":
        return DeepSpeedEngine(stage, optimizer, config, world_size)
    return TorchEngine(stage, optimizer, config)
