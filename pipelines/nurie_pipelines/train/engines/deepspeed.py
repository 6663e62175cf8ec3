"""DeepSpeed ZeRO 1 to 3, on CPU (gloo) or GPU (nccl)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from nurie.checkpoints.sharded import Fragment, ShardedState
from nurie.config.train import EngineConfig, StageBase
from nurie.training.batch import TrainBatch
from nurie.training.draws import RowGenerators
from nurie.training.stages import LossOutput, TrainingStage
from nurie_pipelines.train.engines.optimizer import max_grad_norm, set_learning_rate
from nurie_pipelines.train.engines.zero_state import PartitionedState, ReplicatedState


def deepspeed_config(settings: StageBase, config: EngineConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's JSON: batch size, precision and clipping have one source, the run's YAML."""
    accumulation = settings.gradient_accumulation_steps
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage == 3:
        # Small models would otherwise stay whole (measured).
        zero["stage3_param_persistence_threshold"] = 0
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.use_gpu}
    if config.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": config.use_gpu}
    return {
        "train_micro_batch_size_per_gpu": settings.batch_size // (world_size * accumulation),
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_grad_norm(settings.optimizer),
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # Ours is torch's fused AdamW; DeepSpeed's own would be compiled at the first start.
        "zero_force_ds_cpu_optimizer": False,
    }


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
