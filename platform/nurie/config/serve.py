"""Serving (``configs/serve/*.yaml``)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nurie.config.base import ConfigModel


class AutoscalingConfig(ConfigModel):
    """Autoscaling of the colorizer replicas (Ray Serve's terms)."""

    min_replicas: int = Field(default=1, ge=0)
    """Fewest replicas; 0 allows scale to zero."""
    max_replicas: int = Field(default=2, ge=1)
    """Most replicas."""
    target_ongoing_requests: float = Field(default=4.0, gt=0)
    """Requests per replica that autoscaling aims at."""
    upscale_delay_s: float = Field(default=5.0, ge=0)
    """Seconds of load before a replica is added."""
    downscale_delay_s: float = Field(default=60.0, ge=0)
    """Seconds without load before one is removed."""


class LimitsConfig(ConfigModel):
    """What one request may ask for."""

    max_body_bytes: int = Field(default=32 * 2**20, ge=1024)
    """Largest request body."""
    max_pixels: int = Field(default=16_777_216, ge=4096)
    """Largest input picture, checked before it is decoded."""
    max_side: int = Field(default=2048, ge=32)
    """Longest side of a result."""
    max_inference_steps: int = Field(default=100, ge=1)
    """Most denoising steps."""
    deadline_s: float = Field(default=120.0, gt=0)
    """A request that takes longer is answered with 503."""


class ServeConfig(ConfigModel):
    """The Ray Serve application."""

    kind: Literal["serve"] = "serve"
    """Kind of this file."""
    model: str = "models:/nurie@champion"
    """Model folder, or ``models:/NAME@ALIAS`` of the MLflow registry."""
    tracking_uri: str = "sqlite:///mlflow.db"
    """MLflow store of the registry."""
    host: str = "127.0.0.1"
    """Address of the HTTP endpoint."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port of the HTTP endpoint."""
    num_cpus: float = Field(default=1.0, ge=0)
    """CPUs of a colorizer replica."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs of a colorizer replica."""
    num_threads: int = Field(default=1, ge=1)
    """Torch threads of a colorizer replica."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the weights."""
    vae_tile_size: int | None = Field(default=None, ge=64, multiple_of=32)
    """Larger pictures are encoded and decoded in tiles of this side (None: whole)."""
    cpu_offload: bool = False
    """Components wait in main memory and visit the GPU one at a time; needs ``num_gpus``."""
    autoscaling: AutoscalingConfig = AutoscalingConfig()
    """Autoscaling."""
    max_batch_size: int = Field(default=4, ge=1)
    """Largest dynamic batch."""
    batch_wait_timeout_s: float = Field(default=0.05, ge=0)
    """How long a request waits for company."""
    max_ongoing_requests: int = Field(default=16, ge=1)
    """Requests in flight per replica."""
    max_queued_requests: int = Field(default=64, ge=1)
    """Requests that may wait; one more is answered with 429."""
    limits: LimitsConfig = LimitsConfig()
    """What one request may ask for."""

    @model_validator(mode="after")
    def _offload_needs_a_gpu(self) -> Self:
        if self.cpu_offload and self.num_gpus == 0:
            raise ValueError("cpu_offload: true needs num_gpus above 0; without a GPU leave it out")
        return self
