"""The engine protocol."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from nurie.checkpoints.sharded import Fragment, ShardedState
from nurie.training.batch import TrainBatch
from nurie.training.draws import RowGenerators
from nurie.training.stages import LossOutput, TrainingStage


class Engine(Protocol):
    """Runs steps of one stage on this worker's share of the samples."""

    stage: TrainingStage

    def forward(self, batch: TrainBatch, step: int, generators: RowGenerators) -> LossOutput:
        """Losses of one micro-batch."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of one micro-batch; a loss that is not finite makes ``update`` skip."""
        ...

    def update(self) -> bool:
        """Ends a micro-batch; after the last of a step the weights change.

        Returns:
            False if the gradients were not finite on any worker and have been thrown away.
        """
        ...

    def set_learning_rate(self, value: float) -> None:
        """Sets the learning rate of all parameters."""
        ...

    def grad_norm(self) -> float:
        """Norm of the last step's gradients before clipping (with Muon, of its updates)."""
        ...

    def full_model(self) -> AbstractContextManager:
        """Within this context each rank may run the model on its own, without the others."""
        ...

    def fragments(self) -> Iterator[Fragment]:
        """This worker's fp32 part of every trained parameter; empty where it holds none of it."""
        ...

    def optimizer_fragments(self) -> Iterator[Fragment]:
        """This worker's part of the optimizer's state."""
        ...

    def counters(self) -> dict[str, float]:
        """What else the optimizer remembers: ``optimizer_steps`` and ``loss_scale``."""
        ...

    def load(self, state: ShardedState, counters: dict[str, float]) -> None:
        """Takes over weights and optimizer state, whatever engine and workers wrote them."""
        ...
