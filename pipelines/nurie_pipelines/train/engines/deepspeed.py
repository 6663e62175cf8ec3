"""DeepSpeed ZeRO 1 to 3, on CPU (gloo) or GPU (nccl)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch

from nurie.checkpoints.sharded import Fragment, ShardedState
from nurie.config.train import EngineConfig
from nurie.training.batch import TrainBatch
from nurie.training.draws import RowGenerators
from nurie.training.stages import LossOutput, TrainingStage
from nurie_pipelines.train.deepspeed_json import deepspeed_config
from nurie_pipelines.train.engines.optimizer import set_learning_rate
from nurie_pipelines.train.engines.zero_state import PartitionedState, ReplicatedState


class DeepSpeedEngine:
    """A stage under ZeRO."""

    def __init__(
        self,
        stage: TrainingStage,
        optimizer: torch.optim.Optimizer,
        config: EngineConfig,
        world_size: int,
    ) -> None:
        import deepspeed
        import deepspeed.ops
        from deepspeed.utils import logger

        logger.setLevel(logging.WARNING)
        # On CPU DeepSpeed would compile a helper for a minute that only inference uses.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.stage = stage
        self._zero = config.zero_stage
        self._engine, *_ = deepspeed.initialize(
            model=stage,
            optimizer=optimizer,
            model_parameters=[parameter for _, parameter in stage.trained_parameters()],
            config=deepspeed_config(stage.settings, config, world_size),
            dist_init_required=False,
        )
        kind = PartitionedState if self._zero == 3 else ReplicatedState
        self._state = kind(dict(stage.trained_parameters()), self._engine.optimizer)

    def forward(self, batch: TrainBatch, step: int, generators: RowGenerators) -> LossOutput:
        """See ``Engine``."""
        return self._engine(batch, step, generators)

    def backward(self, loss: torch.Tensor) -> None:
        """See ``Engine``."""
        self._engine.backward(loss)

    def update(self) -> bool:
        """See ``Engine``."""
        skipped = self._engine.skipped_steps
        self._engine.step()
        return self._engine.skipped_steps == skipped

    def set_learning_rate(self, value: float) -> None:
        """See ``Engine``."""
        set_learning_rate(self._engine.optimizer, value, self.stage.settings.optimizer)

    def grad_norm(self) -> float:
        """See ``Engine``."""
        return float(self._engine.get_global_grad_norm() or 0.0)

    def full_model(self) -> AbstractContextManager:
        """See ``Engine``."""
        if self._zero < 3:
            return nullcontext()
        import deepspeed

        # ZeRO-3's hooks would release a module's parameters after use and wait for all ranks.
        return deepspeed.zero.unwrap_model_for_generation(self._engine)

    def fragments(self) -> Iterator[Fragment]:
        """See ``Engine``."""
        return self._state.fragments()

    def optimizer_fragments(self) -> Iterator[Fragment]:
        """See ``Engine``."""
        return self._state.optimizer_fragments()

    def counters(self) -> dict[str, float]:
        """See ``Engine``."""
        return {
            "optimizer_steps": self._state.optimizer_steps(),
            "loss_scale": float(self._engine.optimizer.loss_scaler.cur_scale),
        }

    def load(self, state: ShardedState, counters: dict[str, float]) -> None:
        """See ``Engine``."""
        with torch.no_grad():
            self._state.load(state, counters["optimizer_steps"])
        self._engine.optimizer.loss_scaler.cur_scale = counters["loss_scale"]
