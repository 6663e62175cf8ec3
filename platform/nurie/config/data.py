"""Building a data set (``configs/data/*.yaml``) and reading it for training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nurie.config.base import AbsolutePath, ConfigModel, DataLocation, Location


class CharactersSource(ConfigModel):
    """The built-in parametrised characters, recoloured with random palettes."""

    kind: Literal["characters"] = "characters"
    """Kind of the source."""
    palettes_per_character: int = Field(default=4, ge=1)
    """Pictures made of each character, each in another palette."""
    characters_per_palette: int = Field(default=4, ge=1)
    """How many characters share one palette (gives same-palette references)."""
    max_characters: int | None = Field(default=None, ge=2)
    """Use only this many characters of each split (None: all)."""
    shading_probability: float = Field(default=0.5, ge=0, le=1)
    """Share of pictures with soft cel shading."""
    placement_probability: float = Field(default=0.5, ge=0, le=1)
    """Share of training pictures that are mirrored, turned, scaled and shifted."""


class TagFilter(ConfigModel):
    """Which pictures of a Danbooru-style metadata file are used."""

    ratings: tuple[str, ...] = ("g", "s")
    """Ratings to keep (g general, s sensitive, q questionable, e explicit)."""
    min_score: int | None = None
    """Least score (None: any)."""
    required_tags: tuple[str, ...] = ()
    """Tags that a picture must have, all of them."""
    excluded_tags: tuple[str, ...] = ("comic", "monochrome", "greyscale")
    """Tags of which it must have none."""


class PictureInputConfig(ConfigModel):
    """An ONNX model that takes one picture, and how it wants it."""

    path: AbsolutePath
    """The ONNX file: one input B x 3 x H x W or B x H x W x 3."""
    scale: float = Field(default=255.0, gt=0)
    """Pixels (0 to 255) are divided by this first."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Then this is taken off,"""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """and divided by this."""
    bgr: bool = False
    """The model takes blue, green, red."""


class ScoreModelConfig(PictureInputConfig):
    """A model that scores a picture: its first output holds the numbers."""

    image_size: int = Field(default=224, ge=16)
    """Side of the square that the picture is stretched to where the model takes any size."""
    output_index: int = Field(default=0, ge=0)
    """Which of the numbers is the score."""


class SafetyModelConfig(ScoreModelConfig):
    """A model whose score says how unsafe a picture is."""

    max_score: float = 0.5
    """Pictures with a higher score are left out."""


class TaggerConfig(ConfigModel):
    """A tagger as its publisher exports it, and which of its scores are tags."""

    path: AbsolutePath
    """Folder with ``model.onnx`` and ``selected_tags.csv``."""
    general_threshold: float = Field(default=0.35, ge=0, le=1)
    """Least score of a general tag (category 0)."""
    character_threshold: float = Field(default=0.85, ge=0, le=1)
    """Least score of a character's name (category 4); other categories give no tags."""


class PictureModelConfig(PictureInputConfig):
    """A model that makes one grey map of a picture, values 0 to 1: one value per pixel out."""

    invert: bool = False
    """The model's map is turned over: lines must be dark, foreground bright."""
    multiple_of: int = Field(default=32, ge=1)
    """Sides of the input, where the model takes any, are multiples of this."""


class PicturesSource(ConfigModel):
    """A collection of pictures of one's own, in one of the layouts that people keep them in."""

    kind: Literal["folder", "imagefolder", "webdataset", "colorizediffusion", "kohya"]
    """Layout: any folder, Hugging Face imagefolder, WebDataset tars, the zips of ColorizeDiffusion,
    or kohya's folders with captions (or its TOML file)."""
    path: Location
    """The folder (kohya: or the TOML file); local, or an address such as ``s3://bucket/folder``."""
    test_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of pictures kept for the test split, by a hash of the file's name, of ten pictures or
    more at least two; a layout's own splits go before."""
    min_side: int = Field(default=64, ge=16)
    """Pictures with a shorter side than this, in pixels, are left out."""
    max_aspect_ratio: float = Field(default=4.0, ge=1)
    """Pictures whose longer side is more than this many times the shorter are left out."""
    near_duplicate_distance: int | None = Field(default=8, ge=0, le=15)
    """Pictures whose difference hashes differ in at most this many of 256 bits form a group
    (None: only files of equal content do)."""
    min_aesthetic_score: float | None = None
    """Least aesthetic score, the layout's own or the model's (None: any)."""
    aesthetic_model: ScoreModelConfig | None = None
    """Scores pictures for which the layout has no score (None: they stay unscored)."""
    safety_model: SafetyModelConfig | None = None
    """Leaves unsafe pictures out (None: nothing is looked at)."""
    tagger: TaggerConfig | None = None
    """Names what pictures show for which the layout has no tags (None: they stay without)."""
    metadata: Location | None = None
    """Danbooru-style JSON lines, one object per picture; pictures it does not list are left out."""
    filter: TagFilter | None = None
    """Which pictures of ``metadata`` are used (None: general and sensitive ones, in colour)."""

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        scored = self.kind == "colorizediffusion" or self.aesthetic_model is not None
        if self.min_aesthetic_score is not None and not scored:
            raise ValueError(
                f"min_aesthetic_score: the layout {self.kind} has no such score; name a model "
                "in aesthetic_model"
            )
        if self.filter is not None and self.metadata is None:
            raise ValueError("filter: needs metadata, the file whose entries it selects")
        return self


Source = Annotated[CharactersSource | PicturesSource, Field(discriminator="kind")]


class DataConfig(ConfigModel):
    """One data build."""

    kind: Literal["data"] = "data"
    """Kind of this file."""
    name: str
    """Name of the data set."""
    source: Source
    """Where the pictures come from."""
    output: DataLocation
    """Folder of the shards and the manifest; local, or an address such as ``s3://bucket/data``."""
    image_size: int = Field(default=128, ge=32, multiple_of=32)
    """Side of a square of the pictures' area, in pixels."""
    aspect_ratios: tuple[Annotated[float, Field(ge=0.1, le=10)], ...] = Field(
        default=(1.0,), min_length=1
    )
    """Widths over heights that pictures may have: each is cut to the nearest of these shapes, in
    sides that are multiples of 32, and a batch holds pictures of one shape."""
    line_styles: tuple[str, ...] = ("ink", "xdog", "pencil")
    """Line styles made of every picture; training picks one at random."""
    line_model: PictureModelConfig | None = None
    """Draws one more sketch of every picture, style ``model`` (None: no)."""
    mask_model: PictureModelConfig | None = None
    """Finds the foreground of pictures without transparency or mask (None: all is foreground)."""
    num_model_actors: int = Field(default=1, ge=1)
    """Actors that run these models."""
    model_gpus: float = Field(default=0.0, ge=0)
    """GPUs of each of them."""
    vae: AbsolutePath | None = None
    """Folder of the autoencoder whose latents are stored (None: encoded while training)."""
    mismatch_strategy: Literal["uniform", "tag_distance", "hard"] = "tag_distance"
    """Which unrelated picture becomes a mismatched reference: any, one with other tags, or one with
    similar colours, whose shapes are all the easier to leak."""
    mismatch_rounds: int = Field(default=8, ge=1)
    """Mismatched references chosen per sample; epoch e uses number e modulo this."""
    rows_per_shard: int = Field(default=256, ge=1)
    """Samples per Parquet file."""
    max_quarantined_fraction: float = Field(default=0.2, ge=0, le=1)
    """The build stops before any work if a larger share of the files cannot be used."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random."""
    num_cpus: int = Field(default=2, ge=1)
    """Parallel Ray tasks."""


class ReferenceAugmentation(ConfigModel):
    """Augmentation of the aligned reference (method section 8)."""

    max_rotation: float = Field(default=10.0, ge=0, le=180)
    """Largest rotation, in degrees."""
    max_shift: float = Field(default=0.2, ge=0, le=1)
    """Largest shift with white padding, as a share of the side."""
    min_scale: float = Field(default=0.8, gt=0, le=1)
    """Smallest free resize of each side, before the resize to a square."""
    erase_probability: float = Field(default=0.25, ge=0, le=1)
    """Probability of one white rectangle."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability of a mirror image."""


class ReadConfig(ConfigModel):
    """How a training run reads its shards."""

    shards: DataLocation
    """Folder made by ``nurie data build``; local, or an address such as ``s3://bucket/data``."""
    same_palette_probability: float = Field(default=0.0, ge=0, le=1)
    """Share of samples whose aligned reference is another character in the same palette
    (exact truth exists only for recoloured characters)."""
    augmentation: ReferenceAugmentation = ReferenceAugmentation()
    """Augmentation of the aligned reference."""
    num_encoder_actors: int = Field(default=1, ge=1)
    """Actors that load rows and run the frozen reference encoders."""
    encoder_gpus: float = Field(default=0.0, ge=0)
    """GPUs of each of them (0: they compute on CPUs)."""
    encoder_resources: dict[str, float] = Field(default={})
    """Further Ray resources of each, as ``{encoder: 1}`` for a label that only some nodes offer:
    encoders may run on other machines than the trainers."""
    prefetch_batches: int = Field(default=2, ge=0)
    """Batches kept ready in front of each trainer."""

    @property
    def encoder_device(self) -> str:
        """Where the encoders compute."""
        return "cuda" if self.encoder_gpus else "cpu"
