"""Training runs: the stage chain and the components (``configs/train/*.yaml``)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from nurie.config.base import AbsolutePath, ConfigModel, Location
from nurie.config.data import ReadConfig
from nurie.config.model import ModelConfig


class OptimizerConfig(ConfigModel):
    """The optimizer and its schedule."""

    kind: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    """AdamW; AdamW with state in 8 bits (GPU, package ``bitsandbytes``); or Muon for hidden weight
    matrices with AdamW for all other parameters."""
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
    misaligned: Literal["unrelated", "batch_roll"] = "unrelated"
    """Reference of the misaligned branch: an unrelated picture; or, to compare with the published
    code, that of the sample before in the worker's micro-batch, after references were dropped."""


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

    adapter: ClassVar[str | None] = None
    """The adapter that takes part in the stage; the model's others are left aside."""
    data: ReadConfig | None = None
    """The stage's own shards and how they are read (None: the run's)."""

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


class DualBranchStage(StageBase):
    """What the stages of the backbone have: both branches and the Gram loss."""

    gram: GramConfig = GramConfig()
    """Gram regularization loss."""


class BackboneStage(DualBranchStage):
    """Stage 1: both branches, the Gram loss, all of the U-Net."""

    kind: Literal["backbone"] = "backbone"
    """Kind of the stage."""


class RefineStage(DualBranchStage):
    """A short continuation of stage 1, with the Gram loss from its first step."""

    kind: Literal["refine"] = "refine"
    """Kind of the stage."""
    gram: GramConfig = GramConfig(start_fraction=0)
    """Gram regularization loss."""


class FinetuneStage(DualBranchStage):
    """Stage 1 on one's own pictures: a LoRA on a frozen U-Net, merged into its weights at the end.

    It learns a style from few pictures and forgets little of what the model knows.
    """

    kind: Literal["finetune"] = "finetune"
    """Kind of the stage."""
    rank: int = Field(default=16, ge=1)
    """Rank of the LoRA on all attention layers."""
    gram: GramConfig = GramConfig(start_fraction=0)
    """Gram regularization loss."""


class ForegroundStage(StageBase):
    """Stage 2: the foreground encoder and its injection; the backbone is frozen."""

    adapter: ClassVar[str | None] = "foreground_adapter"

    kind: Literal["foreground"] = "foreground"
    """Kind of the stage."""


class BackgroundStage(StageBase):
    """Stage 3: the background encoder and LoRA on cross-attention; the backbone is frozen."""

    adapter: ClassVar[str | None] = "background_encoder"

    kind: Literal["background"] = "background"
    """Kind of the stage."""
    bleach_probability: float = Field(default=0.2, ge=0, le=1)
    """Probability of background bleaching (outside-mask pixels become near-white)."""
    inpaint_probability: float = Field(default=0.1, ge=0, le=1)
    """Probability of an inpaint-style reference (foreground of another picture)."""
    mask_noise_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability of a dilated, boxed or partly erased reference mask."""


Stage = Annotated[
    BackboneStage | RefineStage | FinetuneStage | ForegroundStage | BackgroundStage,
    Field(discriminator="kind"),
]


class EngineConfig(ConfigModel):
    """What executes a training step."""

    kind: Literal["deepspeed", "torch"] = "deepspeed"
    """DeepSpeed ZeRO, or plain torch data parallelism."""
    zero_stage: Literal[1, 2, 3] = 2
    """What ZeRO divides among the workers: optimizer state (1), gradients too (2), parameters too
    (3). DeepSpeed only."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the step; weights are updated in fp32 always. fp16 scales the loss and needs a
    GPU."""
    offload_optimizer: bool = False
    """Keep ZeRO's optimizer state in the memory of the host."""
    offload_parameters: bool = False
    """Keep parameters there too (ZeRO 3)."""
    gradient_checkpointing: bool = False
    """Compute every block a second time in the backward pass instead of keeping what it needs."""
    compile: bool = False
    """Compile the residual and feed-forward blocks with torch.compile; a CPU needs a C++ compiler
    for that."""
    channels_last: bool = False
    """Keep pictures and latents in channels-last order, which convolutions on GPUs prefer."""
    num_workers: int = Field(default=2, ge=1)
    """Ray Train workers."""
    min_workers: int | None = Field(default=None, ge=1)
    """Fewest workers that the run goes on with when nodes are lost (None: all of them)."""
    worker_resources: dict[str, float] = Field(default={})
    """Further Ray resources of every worker, as ``{CPU: 4}`` or ``{trainer: 1}`` for a label that
    only some nodes offer."""
    use_gpu: bool = False
    """One GPU per worker instead of one CPU."""
    max_failures: int = Field(default=3, ge=0)
    """Automatic restarts after a dead worker."""

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        if (self.offload_optimizer or self.offload_parameters) and self.kind != "deepspeed":
            raise ValueError("offload_optimizer, offload_parameters: need kind deepspeed")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError(
                f"offload_parameters: needs zero_stage 3, got {self.zero_stage}; parameters are "
                "whole on every worker before that"
            )
        if self.precision == "fp16" and not self.use_gpu:
            raise ValueError("precision fp16: needs use_gpu; on a CPU take fp32 or bf16")
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers {self.min_workers} must be at most num_workers {self.num_workers}"
            )
        return self


class GuardConfig(ConfigModel):
    """What happens to a step whose loss is not finite or far above the usual."""

    max_loss_ratio: float = Field(default=10.0, gt=1)
    """A loss this many times the median of the last steps is a spike: the step is skipped."""
    window: int = Field(default=50, ge=2)
    """Steps that the median is taken over; before that many, only losses that are not finite are
    skipped."""
    roll_back_after: int = Field(default=3, ge=1)
    """Skipped steps in a row after which the newest checkpoint's weights are taken."""
    max_skipped_steps: int = Field(default=20, ge=0)
    """Skipped steps of a stage after which it stops and names the samples."""


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
    init_from: Location | None = None
    """What to start from: a model folder, a checkpoint (``.../checkpoints/step-000200``) or a
    registered model (``models:/nurie@champion``). None: fresh weights for U-Net, sketch encoder and
    adapters."""
    components: AbsolutePath
    """Model folder whose frozen parts are used: vae, image_encoder, tagger."""
    data: ReadConfig
    """The shards and how they are read."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """The chain, run in this order."""
    engine: EngineConfig = EngineConfig()
    """What executes a step."""
    guard: GuardConfig = GuardConfig()
    """What happens to bad steps."""
    tracking: TrackingConfig = TrackingConfig()
    """MLflow."""
    output: AbsolutePath
    """Folder of the run: checkpoints per stage and the final model."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept per stage."""
    keep_best: int = Field(default=0, ge=0)
    """Checkpoints with the lowest validation loss, which stay as well."""
    stop_without_checkpoint: bool = False
    """Stop when a checkpoint cannot be written, on a full disk say (otherwise the run goes on and
    tries again at the next one; the last one of a stage must be written)."""
    sample_every: int = Field(default=500, ge=1)
    """Steps between sample grids."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random."""

    @model_validator(mode="after")
    def _stages_in_order(self) -> Self:
        order = ["backbone", "refine", "finetune", "foreground", "background"]
        kinds = [order.index(stage.kind) for stage in self.stages]
        if kinds != sorted(set(kinds)):
            names = ", ".join(stage.kind for stage in self.stages)
            raise ValueError(f"stages: got {names}; each at most once, in the order {order}")
        if self.init_from is None and self.stages[0].kind != "backbone":
            raise ValueError(
                f"stages: {self.stages[0].kind} needs a trained backbone; name a model in "
                "init_from, or begin with a stage of kind backbone"
            )
        for stage in self.stages:
            self._check_optimizer(stage)
        self._check_best()
        workers = self.engine.num_workers
        for stage in self.stages:
            micro, rest = divmod(stage.batch_size, stage.gradient_accumulation_steps)
            if rest or micro < workers:
                raise ValueError(
                    f"stages.{stage.kind}.batch_size {stage.batch_size} must be a multiple of "
                    f"gradient_accumulation_steps {stage.gradient_accumulation_steps} that leaves "
                    f"each of {workers} workers a sample at a time"
                )
            rolled = isinstance(stage, DualBranchStage) and stage.gram.misaligned == "batch_roll"
            if rolled and micro // workers < 2:
                raise ValueError(
                    f"stages.{stage.kind}.gram.misaligned batch_roll: {micro} samples at a time on "
                    f"{workers} workers leave one its own neighbour; take a larger batch_size"
                )
        return self

    def _check_best(self) -> None:
        if self.keep_best and not self.tracking.validation_samples:
            raise ValueError("keep_best: needs tracking.validation_samples above 0")
        if self.keep_best and self.checkpoint_every % self.tracking.validate_every:
            raise ValueError(
                f"keep_best: needs a validation at every checkpoint, so checkpoint_every "
                f"{self.checkpoint_every} must be a multiple of tracking.validate_every "
                f"{self.tracking.validate_every}"
            )

    def _check_optimizer(self, stage: StageBase) -> None:
        kind, engine = stage.optimizer.kind, self.engine
        if kind == "adamw_8bit" and not engine.use_gpu:
            raise ValueError("optimizer.kind adamw_8bit: needs engine.use_gpu")
        if kind == "adamw_8bit" and engine.kind == "deepspeed":
            raise ValueError(
                "optimizer.kind adamw_8bit: needs engine.kind torch, since ZeRO divides the "
                "optimizer's state among the workers already"
            )
        if kind == "muon" and engine.kind == "deepspeed" and engine.zero_stage == 3:
            raise ValueError(
                "optimizer.kind muon: needs engine.zero_stage 1 or 2, since it takes whole matrices"
            )
        if kind == "muon" and engine.offload_optimizer:
            raise ValueError("optimizer.kind muon: does not go with engine.offload_optimizer")


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
