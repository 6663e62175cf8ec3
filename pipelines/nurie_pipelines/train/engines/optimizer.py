"""The optimizer of a stage: AdamW, or Muon for the hidden weight matrices.

A small model trained from nothing gets as far with Muon in a quarter of AdamW's steps (decision 9).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from nurie.config.train import OptimizerConfig
from nurie.training.parameter_groups import uses_muon
from nurie.training.stages import TrainingStage


def build_optimizer(stage: TrainingStage) -> torch.optim.Optimizer:
    """The configured optimizer over the parameters that the stage trains.

    Raises:
        ValueError: If it needs a package that is not installed.
    """
    settings = stage.settings.optimizer
    shared = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    adamw = {**shared, "betas": settings.betas}
    if settings.kind == "muon":
        return _muon(stage, shared, adamw)
    parameters = [parameter for _, parameter in stage.trained_parameters()]
    if settings.kind == "adamw_8bit":
        return _adamw_8bit(parameters, adamw)
    return torch.optim.AdamW(parameters, **adamw, fused=True)


def set_learning_rate(
    optimizer: torch.optim.Optimizer, value: float, settings: OptimizerConfig
) -> None:
    """Sets the learning rate: ``value`` for AdamW, in proportion for the matrices of Muon."""
    factor = settings.muon_learning_rate / settings.learning_rate
    for group in optimizer.param_groups:
        group["lr"] = value * factor if group.get("use_muon") else value


def _adamw_8bit(parameters: list[torch.nn.Parameter], settings: dict) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import (  # pyright: ignore[reportMissingImports] (optional)
            AdamW8bit,
        )
    except ImportError as error:
        raise ValueError(
            "optimizer.kind adamw_8bit: the package bitsandbytes is not installed; "
            "pip install bitsandbytes, or take kind adamw"
        ) from error
    return AdamW8bit(parameters, **settings)


def _muon(
    stage: TrainingStage, shared: dict[str, Any], adamw: dict[str, Any]
) -> torch.optim.Optimizer:
    # Muon's functions are decorated with torch.compile, for which a CPU would need a C++ compiler.
    if not torch.cuda.is_available():
        torch.compiler.set_stance("force_eager")
    from deepspeed.runtime.zero.muon import muon_optimizer, original_muon

    for module in (original_muon, muon_optimizer):
        module.muon_update = _kernels_as_matrices(module.muon_update)
    matrices, others = [], []
    for name, parameter in stage.trained_parameters():
        parameter.use_muon = uses_muon(name, parameter)  # pyright: ignore[reportAttributeAccessIssue] (DeepSpeed reads it)
        (matrices if parameter.use_muon else others).append(parameter)
    groups = [
        {"params": matrices, "use_muon": True, "ns_method": "standard", **shared},
        {"params": others, "use_muon": False, "eps": 1e-8, **adamw},
    ]
    return muon_optimizer.MuonWithAuxAdam(
        [group for group in groups if group["params"]], adam_optimizer=torch.optim.AdamW
    )


def _kernels_as_matrices(muon_update: Any) -> Any:
    """DeepSpeed 0.19.8 flattens a convolution's kernel, then fails on its own flat result."""
    if isinstance(muon_update, partial):
        return muon_update
    return partial(_update, muon_update)


def _update(
    muon_update: Any, grad: torch.Tensor, momentum: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    flat = muon_update(grad.flatten(1), momentum.flatten(1), *args, **kwargs)
    return flat.view_as(grad)
