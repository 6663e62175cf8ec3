"""DeepSpeed's own configuration, made from the run's; light to load."""

from __future__ import annotations

from typing import Any

from nurie.config.train import EngineConfig, OptimizerConfig, StageBase


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


def max_grad_norm(settings: OptimizerConfig) -> float:
    """Limit of the gradients' norm, 0 for none.

    Muon's updates have a norm of their own, and ZeRO would clip these instead of the gradients.
    """
    return 0.0 if settings.kind == "muon" else settings.max_grad_norm
