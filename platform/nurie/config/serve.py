"""Serving (``configs/serve/*.yaml``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from nurie.config.base import AbsolutePath, ConfigModel, Location

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of this machine that others cannot reach."""


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
    max_batch_images: int = Field(default=256, ge=1)
    """Most pictures of one batch."""
    max_priority: int = Field(default=0, ge=0, le=10)
    """Highest ``priority`` of a job; with 0 requests can let others go first, no more."""
    deadline_s: float = Field(default=120.0, gt=0)
    """A picture that takes longer, waiting for it included, is answered with 503."""
    step_timeout_s: float = Field(default=60.0, gt=0)
    """A replica whose denoising step takes longer is stuck and replaced."""


class JobsConfig(ConfigModel):
    """The durable queue: where jobs and pictures are kept, and for how long."""

    folder: Location = Field(default="runs/jobs", validate_default=True)
    """Folder of the pictures, on any file system of fsspec (``s3://...``)."""
    database: str | None = Field(default=None, validate_default=True)
    """SQLAlchemy address of the jobs; left out, the SQLite file ``jobs.db`` in the folder. Replicas
    on several machines need a server (``postgresql+psycopg://host/nurie``)."""
    keep_s: float = Field(default=86_400.0, gt=0)
    """Seconds that a finished job, its pictures and an upload are kept."""
    max_kept: int = Field(default=10_000, ge=1)
    """Most finished jobs; the oldest go first."""
    max_bytes: int = Field(default=8 * 2**30, ge=2**20)
    """Most bytes of pictures; the oldest finished jobs go first, then new work is refused."""
    min_free_bytes: int = Field(default=256 * 2**20, ge=0)
    """With fewer free bytes on the folder's disk the server says that it is not ready."""
    max_attempts: int = Field(default=3, ge=1)
    """A job whose replica died this often fails."""
    lease_s: float = Field(default=15.0, gt=0)
    """A replica that is silent for this long loses its jobs to another."""

    @field_validator("database")
    @classmethod
    def _absolute_file(cls, database: str | None) -> str | None:
        prefix, separator, path = (database or "").partition(":///")
        if not (prefix.startswith("sqlite") and separator and path):
            return database
        return f"{prefix}:///{Path(path).expanduser().absolute()}"

    @model_validator(mode="after")
    def _remote_folder_needs_a_database(self) -> Self:
        if self.database is None and "://" in self.folder:
            raise ValueError(
                f"jobs.folder is {self.folder}, where no SQLite file can lie: give jobs.database "
                "too, e.g. postgresql+psycopg://host/nurie"
            )
        return self

    @property
    def url(self) -> str:
        """SQLAlchemy address of the jobs."""
        return self.database or f"sqlite:///{self.folder}/jobs.db"


class WebhooksConfig(ConfigModel):
    """Telling others that a job has ended, where its request asks for that."""

    hosts: tuple[str, ...] = ()
    """Hosts that requests may name: ``hooks.example``, with a port that is not the usual one
    ``hooks.example:8443``, or ``*.example``, which reaches public addresses only. None of them
    listed, no request may name any."""
    secret_file: AbsolutePath | None = None
    """File whose content signs the messages (HMAC-SHA256 in ``X-Nurie-Signature``)."""
    timeout_s: float = Field(default=10.0, gt=0)
    """Seconds without an answer after which a try has failed."""
    max_tries: int = Field(default=3, ge=1)
    """Most tries of one message."""
    retry_after_s: float = Field(default=10.0, gt=0)
    """Seconds before the second try; every further pause is six times as long."""

    @field_validator("hosts")
    @classmethod
    def _only_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not re.fullmatch(r"(\*\.)?[a-z0-9.-]+(:\d+)?|\[[0-9a-f:]+\](:\d+)?", host):
                raise ValueError(
                    f"{host!r} is no host in small letters: write hooks.example, "
                    "hooks.example:8443 or *.example, without http://"
                )
        return hosts


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
    log_format: Literal["text", "json"] = "text"
    """Form of the server's log lines; each that is about a job names it."""
    keys_file: AbsolutePath | None = None
    """API keys, see ``nurie keys`` (null: everybody who reaches the port may do everything)."""
    open_to_network: bool = False
    """Without keys, listen on other addresses than this machine's own all the same."""
    allowed_hosts: tuple[str, ...] | None = None
    """Names that requests may use for this server. Null: this machine's own while it is open to it
    alone, else all."""
    num_decoders: int = Field(default=2, ge=1)
    """Processes that decode uploaded pictures, each limited to about 1 GB."""
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
    reference_cache_size: int = Field(default=64, ge=0)
    """Encodings of references that a replica remembers (0: none)."""
    autoscaling: AutoscalingConfig = AutoscalingConfig()
    """Autoscaling."""
    max_batch_size: int = Field(default=4, ge=1)
    """Largest dynamic batch."""
    batch_wait_timeout_s: float = Field(default=0.05, ge=0)
    """How long a request waits for company."""
    max_ongoing_requests: int = Field(default=8, ge=1)
    """Calls that a replica holds at once: one runs, one brings pictures in, the others wait their
    turn. A call only has the replica look for jobs; while it takes no more of them, Ray Serve asks
    again after pauses that grow, in which jobs wait for nothing."""
    max_surge_percent: int = Field(default=100, ge=0, le=100)
    """Extra replicas while a new version replaces the old one. With 0, for clusters without a spare
    GPU, old ones go first and jobs wait."""
    max_queued_requests: int = Field(default=256, ge=1)
    """Jobs that may wait; one more is answered with 429."""
    jobs: JobsConfig = JobsConfig()
    """Where jobs are kept, and for how long."""
    limits: LimitsConfig = LimitsConfig()
    """What one request may ask for."""
    webhooks: WebhooksConfig = WebhooksConfig()
    """Whom the server may tell that a job has ended."""

    @property
    def address(self) -> str:
        """Where the endpoint is reached from this machine."""
        return f"http://{self.host}:{self.port}"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names that requests may use for this server; empty allows all."""
        if self.allowed_hosts is not None:
            return self.allowed_hosts
        closed = self.keys_file is None and not self.open_to_network
        return (*LOOPBACK, self.host) if closed else ()

    @model_validator(mode="after")
    def _network_needs_keys(self) -> Self:
        loopback = self.host in LOOPBACK or self.host.startswith("127.")
        if not loopback and self.keys_file is None and not self.open_to_network:
            raise ValueError(
                f"host {self.host}: others can reach it and there are no keys; make one "
                "(nurie keys add NAME) and set keys_file, or set open_to_network: true behind a "
                "gateway that asks for a login"
            )
        return self

    @model_validator(mode="after")
    def _offload_needs_a_gpu(self) -> Self:
        if self.cpu_offload and self.num_gpus == 0:
            raise ValueError("cpu_offload: true needs num_gpus above 0; without a GPU leave it out")
        return self
