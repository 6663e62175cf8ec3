"""Small training runs that tests share."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from nurie.config.data import ReadConfig
from nurie.config.train import (
    BackboneStage,
    BackgroundStage,
    EngineConfig,
    ForegroundStage,
    GramConfig,
    OptimizerConfig,
    TrackingConfig,
    TrainConfig,
)
from tests.tiny import tiny_config


def run_config(
    folder: Path,
    name: str,
    steps: tuple[int, ...],
    optimizer: OptimizerConfig | None = None,
    **changes,
) -> TrainConfig:
    kinds = (BackboneStage, ForegroundStage, BackgroundStage)
    stages = [
        kind(steps=s, batch_size=4, optimizer=optimizer or OptimizerConfig())
        for kind, s in zip(kinds, steps, strict=False)
    ]
    stages[0] = stages[0].model_copy(
        update={"gram": GramConfig(start_fraction=0.5), "ema_decay": 0.9}
    )
    settings = {
        "name": name,
        "model": tiny_config(),
        "components": folder / "components",
        "data": ReadConfig(shards=folder / "shards"),
        "stages": tuple(stages),
        "engine": EngineConfig(num_workers=2),
        "tracking": tracking(folder, name),
        "output": folder / name,
        "checkpoint_every": 2,
        "sample_every": 100,
    }
    return TrainConfig(**(settings | changes))


def tracking(folder: Path, name: str, **changes) -> TrackingConfig:
    return TrackingConfig(
        uri=f"sqlite:///{folder}/{name}.db", log_every=1, validation_samples=3, **changes
    )


MUON = OptimizerConfig(kind="muon", learning_rate=1e-3)
"""Steps matrices by Muon and everything else by AdamW: both kinds of state are kept and sharded."""


def assert_same_weights(model: Path, other: Path) -> None:
    for part in ("unet", "sketch_encoder", "reference_projection"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        expected, got = load_file(other / name), load_file(model / name)
        assert all(torch.equal(expected[key], got[key]) for key in expected)


def losses(config: TrainConfig) -> tuple[list[float], list[float]]:
    """Total of every step of the backbone, and the losses of unseen samples."""
    lines = (config.output / "backbone" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line)["metrics"] for line in lines]
    trained = [m for m in metrics if "loss/diffusion" in m]
    totals = [sum(v for k, v in m.items() if k.startswith("loss/")) for m in trained]
    return totals, [v for m in metrics for k, v in sorted(m.items()) if k.startswith("val/")]
