"""Evaluation (``configs/eval/*.yaml``)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from nurie.config.base import AbsolutePath, ConfigModel, DataLocation
from nurie.config.train import MlflowConfig

Peer = Literal["mean_colour", "palette_transfer", "nearest_patch"]
"""A simple colouring that needs no training: ``nurie.evaluation.peers``."""


class EncoderConfig(ConfigModel):
    """A network that makes one vector of a picture."""

    path: AbsolutePath
    """A transformers folder of safetensors (CLIP's image tower, DINO), or an ONNX file that takes
    ``N x 3 x H x W``."""
    image_size: int | None = Field(default=None, ge=16)
    """Side of the square that pictures are resized to (None: the network's own)."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Subtracted from colours in 0..1 (CLIP's)."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Divides them afterwards (CLIP's)."""


class NetworksConfig(ConfigModel):
    """Networks of the user's for metrics that need one; none is fetched."""

    encoder: EncoderConfig | None = None
    """Image encoder of ``reference_likeness`` and ``truth_likeness`` (None: left out)."""
    features: EncoderConfig | None = None
    """Network whose features KID and FID compare (None: the encoder)."""
    lpips: AbsolutePath | None = None
    """LPIPS as ONNX: two pictures ``N x 3 x H x W`` in -1..1 to a distance (None: left out)."""


class ControlNetConfig(ConfigModel):
    """diffusers' ControlNet with an IP-Adapter as a peer: Stable Diffusion 1.5 or XL, by path."""

    base: AbsolutePath
    """Folder of the base model, as diffusers saves it."""
    controlnet: AbsolutePath
    """Folder of a ControlNet for line drawings."""
    ip_adapter: AbsolutePath
    """The IP-Adapter's weights, a file of safetensors."""
    image_encoder: AbsolutePath
    """Folder of the CLIP image encoder (with projection) that the IP-Adapter was trained with."""
    image_size: int | None = Field(default=None, ge=64)
    """Pixels of the longer side while it is coloured; results come back in the sketch's size (None:
    the base model's own)."""
    lines: Literal["white", "black"] = "white"
    """Lines as the ControlNet was trained on them: white on black, or black on white."""
    prompt: str = ""
    """Text beside the reference."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    num_inference_steps: int = Field(default=20, ge=1)
    """Denoising steps."""
    guidance_scale: float = Field(default=5.0, ge=0)
    """Guidance."""
    controlnet_scale: float = Field(default=1.0, ge=0)
    """Strength of the sketch."""
    ip_adapter_scale: float = Field(default=1.0, ge=0)
    """Strength of the reference."""


class DisentanglementConfig(ConfigModel):
    """The benchmark of disentanglement (docs/reference/disentanglement.md)."""

    num_sketches: int = Field(default=24, ge=1)
    """Sketches, the first of those the seed chooses."""
    num_references: int = Field(default=4, ge=2)
    """Unrelated references that are swapped under every sketch."""


class GramMapsConfig(ConfigModel):
    """Gram heat maps: which places the denoiser takes for alike."""

    num_sketches: int = Field(default=4, ge=1)
    """Sketches, the first of those the seed chooses."""
    query: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (
        0.5,
        0.25,
    )
    """The place that is asked for: x and y as shares of the picture."""
    blocks: tuple[int, int] | None = None
    """Transformer blocks, counted from 1 (None: the last ones at the lowest resolution of the
    encoder and of the decoder)."""


class EvaluationBase(ConfigModel):
    """What every evaluation has."""

    name: str | None = None
    """Of its MLflow run (None: the folder of the model or of the results)."""
    output: AbsolutePath
    """Folder of the report, and of the results, with which an interrupted evaluation goes on."""
    networks: NetworksConfig = NetworksConfig()
    """Networks for metrics that need one."""
    sheet_rows: int = Field(default=12, ge=1)
    """Rows of the contact sheet."""
    tracking: MlflowConfig = MlflowConfig()
    """MLflow."""


class EvaluateConfig(EvaluationBase):
    """Metrics of a model on unseen characters under three reference protocols."""

    kind: Literal["eval"] = "eval"
    """Kind of this file."""
    model: str
    """Model folder, or ``models:/NAME@ALIAS`` of the MLflow registry."""
    shards: DataLocation
    """Folder made by ``nurie data build``, a path or an address; its test split is used."""
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
    peers: tuple[Peer, ...] = ()
    """Simple colourings that are measured beside the model, on the same pairs."""
    controlnet: ControlNetConfig | None = None
    """ControlNet with IP-Adapter from weights of the user's, a peer on the same pairs (None: not
    made)."""
    disentanglement: DisentanglementConfig | None = None
    """The benchmark of disentanglement (None: not run)."""
    gram_maps: GramMapsConfig | None = None
    """Gram heat maps (None: not drawn)."""
    seed: int = Field(default=0, ge=0)
    """Seed of pairs and noise."""


class ResultsConfig(EvaluationBase):
    """Metrics of pictures made elsewhere, listed in a manifest."""

    kind: Literal["eval-results"] = "eval-results"
    """Kind of this file."""
    results: AbsolutePath
    """Folder with ``manifest.csv`` or ``manifest.jsonl`` (docs/guides/evaluate.md)."""
    num_actors: int = Field(default=2, ge=1)
    """Ray actors that measure."""


class VariantConfig(ConfigModel):
    """One variant of an ablation: what differs from the training it begins with."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the training by dotted path, as on the command line."""
    without_stages: tuple[Literal["backbone", "foreground", "background"], ...] = ()
    """Stages that are left out."""
    same_as: str | None = None
    """Another variant that this one would be the same training as: it is not trained, and the
    report says so with ``reason``."""
    reason: str = ""
    """Why it is the same."""

    @model_validator(mode="after")
    def _the_same_has_no_difference(self) -> Self:
        if self.same_as is not None and (self.settings or self.without_stages):
            raise ValueError(
                f"same_as {self.same_as}: takes no settings and no without_stages of its own"
            )
        if (self.same_as is None) == bool(self.reason):
            raise ValueError("same_as and reason: give both or none")
        return self


class AblationsConfig(ConfigModel):
    """Variants of one training with the same data, steps and seeds, measured the same way."""

    kind: Literal["ablations"] = "ablations"
    """Kind of this file."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the comparison; its runs are in the MLflow experiment of this name."""
    train: AbsolutePath
    """File of kind ``train`` that every variant begins with."""
    evaluate: AbsolutePath
    """File of kind ``eval`` that measures every variant."""
    variants: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], VariantConfig] = Field(
        min_length=2
    )
    """Name -> what differs; the first is what the others are compared with."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0, 1, 2), min_length=1)
    """Seeds of the trainings; every variant has all of them."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the training for all variants, by dotted path."""
    evaluate_settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the evaluation for all variants, by dotted path."""
    output: AbsolutePath
    """Folder of the trainings, the evaluations and the table; the same folder continues."""
    tracking_uri: str = "sqlite:///mlflow.db"
    """Tracking store."""
    grid_rows: int = Field(default=6, ge=1)
    """Rows of the picture grid."""

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} has one twice")
        return self

    @model_validator(mode="after")
    def _variants_to_train(self) -> Self:
        if len(self.trained) < 2:
            raise ValueError(f"variants: {', '.join(self.trained)}: nothing to compare; give two")
        for name, variant in self.variants.items():
            if variant.same_as is not None and variant.same_as not in self.trained:
                raise ValueError(
                    f"variants.{name}.same_as: {variant.same_as!r} is no trained variant; choose "
                    f"from {', '.join(self.trained)}"
                )
        return self

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the variants that are trained, in their order."""
        return tuple(name for name, each in self.variants.items() if each.same_as is None)
