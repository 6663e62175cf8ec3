"""Training runs: the stage chain and the components (``configs/train/*.yaml``)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nurie.config.base import AbsolutePath, ConfigModel
from nurie.config.data import ReadConfig
from nurie.config.model import ModelConfig


class OptimizerConfig(ConfigModel):
    """The optimizer and its schedule."""

    kind: Literal["adamw", "muon"] = "adamw"
    """AdamW, or Muon for hidden weight matrices with AdamW for all other parameters."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = Field(default=0.02, gt=0)
    """Peak learning rate of Muon: spectral norm of a matrix's change per step."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of the moments."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm (AdamW only)."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""


class GramConfig(ConfigModel):
    """Gram regularization loss (method section 5)."""

    weight: float = Field(default=1.0, ge=0)
    """Weight after the ramp; 0 switches the misaligned branch off."""
    start_fraction: float = Field(default=1 / 3, ge=0, le=1)
    """Share of the steps before the weight leaves 0."""
    ramp_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps over which it rises linearly (0: a hard switch)."""
    reduction: Literal["mean", "frobenius"] = "mean"
    """Mean squared error, or the paper's Frobenius sum."""
    foreground_only: bool = False
    """Weight the loss by the foreground mask."""


class TimestepConfig(ConfigModel):
    """From which density timesteps are drawn."""

    density: Literal["uniform", "logit_normal"] = "uniform"
    """Uniform (method section 1), or logit-normal (Esser et al. 2024, section 3.1)."""
    logit_mean: float = 0.0
    """Logit of the median timestep's share of the schedule; above 0: mostly noise."""
    logit_std: float = Field(default=1.0, gt=0)
    """Spread of the logit."""


class StageBase(ConfigModel):
    """What all stages have."""

    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=16, ge=1)
    """Samples per optimizer step over all workers."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Micro-batches per optimizer step."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the exponential moving average of the trained weights (0: off)."""
    conditioning_dropout_prob: float = Field(default=0.2, ge=0, le=1)
    """Probability that a sample's reference tokens become zeros."""
    sketch_dropout_prob: float = Field(default=0.1, ge=0, le=1)
    """Probability that one of the four sketch features is dropped, each on its own."""
    timesteps: TimestepConfig = TimestepConfig()
    """Density of the timesteps."""
    noise_offset: float = Field(default=0.05, ge=0)
    """Strength of the per-channel noise offset."""
    snr_gamma: float | None = Field(default=None, gt=0)
    """Min-SNR weighting (None: off)."""


class BackboneStage(StageBase):
    """Stage 1: both branches, the Gram loss, all of the U-Net."""

    kind: Literal["backbone"] = "backbone"
    """Kind of the stage."""
    gram: GramConfig = GramConfig()
    """Gram regularization loss."""


class ForegroundStage(StageBase):
    """Stage 2: the foreground encoder and its injection; the backbone is frozen."""

    kind: Literal["foreground"] = "foreground"
    """Kind of the stage."""


class BackgroundStage(StageBase):
    """Stage 3: the background encoder and LoRA on cross-attention; the backbone is frozen."""

    kind: Literal["background"] = "background"
    """Kind of the stage."""
    bleach_probability: float = Field(default=0.2, ge=0, le=1)
    """Probability of background bleaching (outside-mask pixels become near-white)."""
    inpaint_probability: float = Field(default=0.1, ge=0, le=1)
    """Probability of an inpaint-style reference (foreground of another picture)."""
    mask_noise_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability of a dilated, boxed or partly erased reference mask."""


Stage = Annotated[BackboneStage | ForegroundStage | BackgroundStage, Field(discriminator="kind")]


class EngineConfig(ConfigModel):
    """What executes a training step."""

    kind: Literal["deepspeed", "torch"] = "deepspeed"
    """DeepSpeed ZeRO, or plain torch data parallelism."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage (DeepSpeed only)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the step."""
    num_workers: int = Field(default=2, ge=1)
    """Ray Train workers."""
    use_gpu: bool = False
    """One GPU per worker instead of one CPU."""
    max_failures: int = Field(default=3, ge=0)
    """Automatic restarts after a dead worker."""


class MlflowConfig(ConfigModel):
    """Where runs are written down."""

    uri: str = "sqlite:///mlflow.db"
    """Tracking store; a relative SQLite path is taken from the current directory."""
    experiment: str = "nurie"
    """Experiment of the runs."""


class TrackingConfig(MlflowConfig):
    """MLflow: where, which model, and how closely a run is watched."""

    registered_model: str | None = "nurie"
    """Name in the model registry (None: do not register)."""
    alias: str | None = "champion"
    """Alias given to the new version."""
    log_every: int = Field(default=5, ge=1)
    """Steps between logged points."""
    validate_every: int = Field(default=500, ge=1)
    """Steps between validations; one is made before the first step and after the last."""
    validation_samples: int = Field(default=16, ge=0)
    """Unseen samples whose loss is measured, always with the same noise (0: no validation)."""
    system_metrics_seconds: float = Field(default=10.0, ge=0.1)
    """Seconds between samples of CPU, memory, disk, network and GPUs."""


class TrainConfig(ConfigModel):
    """One training run: a chain of stages."""

    kind: Literal["train"] = "train"
    """Kind of this file."""
    name: str
    """Name of the run; the same name continues it."""
    model: ModelConfig
    """The model preset."""
    init_from: AbsolutePath | None = None
    """Model folder to start from (None: fresh weights for U-Net, sketch encoder and adapters)."""
    components: AbsolutePath
    """Model folder whose frozen parts are used: vae, image_encoder, tagger."""
    data: ReadConfig
    """The shards and how they are read."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """The chain, run in this order."""
    engine: EngineConfig = EngineConfig()
    """What executes a step."""
    tracking: TrackingConfig = TrackingConfig()
    """MLflow."""
    output: AbsolutePath
    """Folder of the run: checkpoints per stage and the final model."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept per stage."""
    sample_every: int = Field(default=500, ge=1)
    """Steps between sample grids."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random."""

    @model_validator(mode="after")
    def _stages_in_order(self) -> Self:
        order = ["backbone", "foreground", "background"]
        kinds = [order.index(stage.kind) for stage in self.stages]
        if kinds != sorted(set(kinds)):
            names = ", ".join(stage.kind for stage in self.stages)
            raise ValueError(f"stages: got {names}; each at most once, in the order {order}")
        workers = self.engine.num_workers
        for stage in self.stages:
            if stage.batch_size % (workers * stage.gradient_accumulation_steps):
                raise ValueError(
                    f"stages.{stage.kind}.batch_size {stage.batch_size} must be a multiple of "
                    f"num_workers x gradient_accumulation_steps = "
                    f"{workers * stage.gradient_accumulation_steps}"
                )
        return self


class VaeTrainConfig(ConfigModel):
    """Training the small autoencoder."""

    kind: Literal["train-vae"] = "train-vae"
    """Kind of this file."""
    model: ModelConfig
    """Preset whose ``vae`` part is trained."""
    output: AbsolutePath
    """Folder that receives ``vae/``."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=16, ge=1)
    """Pictures per step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate (cosine decay)."""
    kl_weight: float = Field(default=1e-6, ge=0)
    """Weight of the KL term."""
    checkpoint_every: int = Field(default=250, ge=1)
    """Steps between saved states; the same command continues from the newest."""
    freeze_encoder: bool = False
    """Only sharpen the decoder of the autoencoder in ``output``: latents made by it stay valid."""
    num_threads: int = Field(default=2, ge=1)
    """Torch threads."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random."""


class EncodersTrainConfig(ConfigModel):
    """Training the small image encoder and tagger on the built-in attributes."""

    kind: Literal["train-encoders"] = "train-encoders"
    """Kind of this file."""
    model: ModelConfig
    """Preset whose ``reference`` part is trained."""
    output: AbsolutePath
    """Folder that receives ``image_encoder/`` and ``tagger/``."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures per step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate (cosine decay)."""
    num_threads: int = Field(default=2, ge=1)
    """Torch threads."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random."""
