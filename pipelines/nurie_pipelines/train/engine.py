"""What executes a training step: DeepSpeed ZeRO or plain torch behind one protocol."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nurie.config.train import EngineConfig, StageBase
from nurie.training.batch import TrainBatch
from nurie.training.stages import LossOutput, TrainingStage
from nurie_pipelines.train.optimizer import build_optimizer, max_grad_norm, set_learning_rate


class Engine(Protocol):
    """Runs steps of one stage on this worker's share of the samples."""

    stage: TrainingStage

    def micro_step(self, batch: TrainBatch, step: int, generator: torch.Generator) -> LossOutput:
        """Forward and backward of one micro-batch; after the last one of a step, the update."""
        ...

    def set_learning_rate(self, value: float) -> None:
        """Sets the learning rate of all parameters."""
        ...

    def grad_norm(self) -> float:
        """Norm of the last step's gradients before clipping (with Muon, of its updates)."""
        ...

    def full_parameters(self) -> AbstractContextManager:
        """Within this context every rank sees whole, current parameters."""
        ...

    def full_model(self) -> AbstractContextManager:
        """Within this context each rank may run the model on its own, without the others."""
        ...

    def save(self, folder: Path) -> None:
        """Writes this rank's part of the engine's state; all ranks call it."""
        ...

    def load(self, folder: Path) -> None:
        """Reads what ``save`` wrote; all ranks call it."""
        ...


def build_engine(stage: TrainingStage, config: EngineConfig) -> Engine:
    """Builds the configured engine around a stage; the process group exists already."""
    optimizer = build_optimizer(stage)
    if config.kind == "deepspeed":
        return DeepSpeedEngine(stage, optimizer, config)
    return TorchEngine(stage, optimizer, config)


def deepspeed_config(settings: StageBase, config: EngineConfig) -> dict[str, Any]:
    """DeepSpeed's JSON: batch size, precision and clipping have one source, the run's YAML."""
    accumulation = settings.gradient_accumulation_steps
    return {
        "train_micro_batch_size_per_gpu": settings.batch_size
        // (config.num_workers * accumulation),
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_grad_norm(settings.optimizer),
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_optimization": {
            "stage": config.zero_stage,
            # Small models would otherwise stay whole in ZeRO-3 (measured).
            **({"stage3_param_persistence_threshold": 0} if config.zero_stage == 3 else {}),
        },
        "zero_allow_untested_optimizer": True,
    }


class DeepSpeedEngine:
    """DeepSpeed ZeRO 0 to 3, on CPU (gloo) or GPU (nccl)."""

    def __init__(
        self, stage: TrainingStage, optimizer: torch.optim.Optimizer, config: EngineConfig
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
            config=deepspeed_config(stage.settings, config),
            dist_init_required=False,
        )

    def micro_step(self, batch: TrainBatch, step: int, generator: torch.Generator) -> LossOutput:
        """See ``Engine``."""
        out = self._engine(batch, step, generator)
        self._engine.backward(out.total)
        self._engine.step()
        return out

    def set_learning_rate(self, value: float) -> None:
        """See ``Engine``."""
        set_learning_rate(self._engine.optimizer, value, self.stage.settings.optimizer)

    def grad_norm(self) -> float:
        """See ``Engine``."""
        return float(self._engine.get_global_grad_norm() or 0.0)

    def full_parameters(self) -> AbstractContextManager:
        """See ``Engine``."""
        if self._zero < 3:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(list(self.stage.parameters()))

    def full_model(self) -> AbstractContextManager:
        """See ``Engine``."""
        if self._zero < 3:
            return nullcontext()
        import deepspeed

        # ZeRO-3's hooks would release a module's parameters after use and wait for all ranks.
        return deepspeed.zero.unwrap_model_for_generation(self._engine)

    def save(self, folder: Path) -> None:
        """See ``Engine``."""
        self._engine.save_checkpoint(str(folder), tag="engine", exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """See ``Engine``."""
        path, _ = self._engine.load_checkpoint(
            str(folder), tag="engine", load_module_strict=False, load_lr_scheduler_states=False
        )
        if path is None:
            raise ValueError(f"{folder}: DeepSpeed found no state to load")


class TorchEngine:
    """Plain torch; gradients are averaged by ``DistributedDataParallel``."""

    def __init__(
        self, stage: TrainingStage, optimizer: torch.optim.Optimizer, config: EngineConfig
    ) -> None:
        self.stage = stage
        self._optimizer = optimizer
        self._max_norm = max_grad_norm(stage.settings.optimizer)
        self._accumulation = stage.settings.gradient_accumulation_steps
        self._bf16 = config.precision == "bf16"
        self._micro = 0
        self._norm = 0.0
        many = dist.is_initialized() and dist.get_world_size() > 1
        self._module = (
            DistributedDataParallel(stage, find_unused_parameters=True) if many else stage
        )

    def micro_step(self, batch: TrainBatch, step: int, generator: torch.Generator) -> LossOutput:
        """See ``Engine``."""
        self._micro += 1
        last = self._micro % self._accumulation == 0
        wait = isinstance(self._module, DistributedDataParallel) and not last
        device = batch.latents.device.type
        with self._module.no_sync() if wait else nullcontext():
            with torch.autocast(device, torch.bfloat16, enabled=self._bf16):
                out = self._module(batch, step, generator)
            (out.total / self._accumulation).backward()
        if last:
            parameters = [parameter for _, parameter in self.stage.trained_parameters()]
            # A limit of 0 is none, as in DeepSpeed; the norm is wanted all the same.
            limit = self._max_norm or float("inf")
            self._norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        return out

    def set_learning_rate(self, value: float) -> None:
        """See ``Engine``."""
        set_learning_rate(self._optimizer, value, self.stage.settings.optimizer)

    def grad_norm(self) -> float:
        """See ``Engine``."""
        return self._norm

    def full_parameters(self) -> AbstractContextManager:
        """See ``Engine``."""
        return nullcontext()

    def full_model(self) -> AbstractContextManager:
        """See ``Engine``."""
        return nullcontext()

    def save(self, folder: Path) -> None:
        """See ``Engine``."""
        if not dist.is_initialized() or dist.get_rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            state = {
                "optimizer": self._optimizer.state_dict(),
                "parameters": dict(self.stage.trained_parameters()),
            }
            torch.save(state, folder / "engine.pt")

    def load(self, folder: Path) -> None:
        """See ``Engine``."""
        state = torch.load(folder / "engine.pt", weights_only=True)
        self._optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for name, parameter in self.stage.trained_parameters():
                parameter.copy_(state["parameters"][name])
