"""Plain torch data parallelism."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nurie.checkpoints.sharded import WEIGHT, Fragment, ShardedState
from nurie.config.train import EngineConfig
from nurie.training.batch import TrainBatch
from nurie.training.draws import RowGenerators
from nurie.training.stages import LossOutput, TrainingStage
from nurie_pipelines.train.deepspeed_json import max_grad_norm
from nurie_pipelines.train.engines.optimizer import set_learning_rate


class TorchEngine:
    """Every worker holds everything; ``DistributedDataParallel`` averages the gradients."""

    def __init__(
        self, stage: TrainingStage, optimizer: torch.optim.Optimizer, config: EngineConfig
    ) -> None:
        self.stage = stage
        self._optimizer = optimizer
        self._parameters = dict(stage.trained_parameters())
        self._max_norm = max_grad_norm(stage.settings.optimizer)
        self._accumulation = stage.settings.gradient_accumulation_steps
        self._micro = 0
        self._norm = 0.0
        device = next(iter(self._parameters.values())).device.type
        self._scaler = torch.amp.GradScaler(device, enabled=config.precision == "fp16")
        many = dist.is_initialized() and dist.get_world_size() > 1
        self._module = (
            DistributedDataParallel(stage, find_unused_parameters=True) if many else stage
        )

    def forward(self, batch: TrainBatch, step: int, generators: RowGenerators) -> LossOutput:
        """See ``Engine``."""
        if isinstance(self._module, DistributedDataParallel):
            self._module.require_backward_grad_sync = self._is_last()
        return self._module(batch, step, generators)

    def backward(self, loss: torch.Tensor) -> None:
        """See ``Engine``."""
        self._scaler.scale(loss / self._accumulation).backward()

    def update(self) -> bool:
        """See ``Engine``."""
        last = self._is_last()
        self._micro += 1
        if not last:
            return True
        self._scaler.unscale_(self._optimizer)
        # A limit of 0 is none, as in DeepSpeed; the norm is wanted all the same.
        limit = self._max_norm or float("inf")
        self._norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), limit))
        taken = self._norm < float("inf")
        if taken:
            self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return taken

    def set_learning_rate(self, value: float) -> None:
        """See ``Engine``."""
        set_learning_rate(self._optimizer, value, self.stage.settings.optimizer)

    def grad_norm(self) -> float:
        """See ``Engine``."""
        return self._norm

    def full_model(self) -> AbstractContextManager:
        """See ``Engine``."""
        return nullcontext()

    def fragments(self) -> Iterator[Fragment]:
        """See ``Engine``; the first worker has all."""
        return (self._held(name, WEIGHT, each) for name, each in self._parameters.items())

    def optimizer_fragments(self) -> Iterator[Fragment]:
        """See ``Engine``."""
        for name, parameter in self._parameters.items():
            for state, values in self._optimizer.state[parameter].items():
                if values.shape == parameter.shape:
                    yield self._held(name, state, values)

    def counters(self) -> dict[str, float]:
        """See ``Engine``."""
        steps = [float(each["step"]) for each in self._optimizer.state.values() if "step" in each]
        return {
            "optimizer_steps": steps[0] if steps else 0.0,
            "loss_scale": self._scaler.get_scale(),
        }

    def load(self, state: ShardedState, counters: dict[str, float]) -> None:
        """See ``Engine``."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state.whole(name, WEIGHT))
                # Fused optimizers keep their count where the weights are.
                step = torch.tensor(counters["optimizer_steps"], device=parameter.device)
                kept = self._optimizer.state[parameter]
                for key in state.optimizer_states(name):
                    values = state.whole(name, key)
                    kept[key] = torch.empty_like(parameter).copy_(values)
                    if key.startswith("exp_avg"):
                        kept["step"] = step
        if self._scaler.is_enabled():
            self._scaler = torch.amp.GradScaler(
                self._scaler._device,  # pyright: ignore[reportPrivateUsage]
                init_scale=counters["loss_scale"],
            )

    def _held(self, name: str, state: str, values: torch.Tensor) -> Fragment:
        first = not dist.is_initialized() or dist.get_rank() == 0
        flat = values.detach().reshape(-1)
        return Fragment(name, state, flat if first else flat[:0], values.shape)

    def _is_last(self) -> bool:
        return (self._micro + 1) % self._accumulation == 0
