"""Evaluation (``configs/eval/*.yaml``)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nurie.config.base import AbsolutePath, ConfigModel, DataLocation
from nurie.config.train import MlflowConfig


class EvaluateConfig(ConfigModel):
    """Metrics of a model on unseen characters under three reference protocols."""

    kind: Literal["eval"] = "eval"
    """Kind of this file."""
    model: str
    """Model folder, or ``models:/NAME@ALIAS`` of the MLflow registry."""
    shards: DataLocation
    """Folder made by ``nurie data build``, a path or an address; its test split is used."""
    output: AbsolutePath
    """Folder of the table (JSON, Markdown) and the contact sheet."""
    num_samples: int = Field(default=64, ge=1)
    """Test samples, chosen by the seed."""
    num_inference_steps: int | None = Field(default=None, ge=1)
    """Denoising steps (None: the model's own)."""
    guidance_scale: float | None = Field(default=None, ge=0)
    """Reference guidance (None: the model's own)."""
    batch_size: int = Field(default=8, ge=1)
    """Pictures per batch."""
    num_actors: int = Field(default=2, ge=1)
    """Ray actors that hold a pipeline."""
    use_gpu: bool = False
    """One GPU per actor instead of one CPU."""
    sheet_rows: int = Field(default=12, ge=1)
    """Rows of the contact sheet."""
    tracking: MlflowConfig = MlflowConfig()
    """MLflow."""
    seed: int = Field(default=0, ge=0)
    """Seed of pairs and noise."""
