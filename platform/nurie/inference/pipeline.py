"""``ColorizationPipeline``: sketch and reference in, coloured picture out."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from transformers import CLIPVisionModelWithProjection

from nurie.data.tagger import Tagger
from nurie.inference.conditioning import (
    Parts,
    Strengths,
    build_conditioning,
    kept_background,
)
from nurie.inference.controls import parse_controls
from nurie.inference.folder import (
    OWN_CONTROLS,
    load_frozen_parts,
    load_pipeline_parts,
    own_settings,
    save_pipeline_parts,
)
from nurie.inference.postprocess import ColorizationOutput, finish, to_pictures
from nurie.inference.reference_cache import ReferenceCache
from nurie.inference.request import Prepared, as_list, prepare
from nurie.inference.sampling import Guidance, KeptBackground, denoise
from nurie.inference.scheduler import build_scheduler, choose_scheduler
from nurie.models.autoencoder import decode_latents, encode_latents
from nurie.models.background_encoder import BackgroundEncoder
from nurie.models.colorizer import ColorizationModel, use_lora
from nurie.models.conditioning import Conditioning
from nurie.models.foreground_encoder import ForegroundAdapter
from nurie.models.reference_encoder import ReferenceEncoder
from nurie.models.reference_projection import ReferenceProjection
from nurie.models.sketch_encoder import SketchEncoder
from nurie.models.unet import ColorizationUNet

StepCallback = Callable[["ColorizationPipeline", int, torch.Tensor, dict[str, torch.Tensor]], Any]
MAX_SEED = 2**32 - 1


class ColorizationPipeline(DiffusionPipeline):
    """Colours sketches with the colours of references.

    Args:
        unet: Denoiser.
        sketch_encoder: Sketch encoder.
        reference_projection: Makes reference tokens.
        image_encoder: Frozen image encoder.
        vae: Autoencoder.
        scheduler: A diffusers scheduler that suits v-prediction.
        tagger: Frozen tagger.
        foreground_adapter: Optional adapter.
        background_encoder: Optional adapter; the U-Net then carries its LoRA.
        default_size: Side of the square whose area a result has by default, in pixels.
        default_num_inference_steps: Denoising steps of a call that does not say how many.
        default_guidance_scale: Guidance of a call that does not say how much.
        default_background_strength: Strength of the background adapter, likewise.
        use_tagger: False for a model trained without the tagger (ablation).
    """

    _optional_components = ["foreground_adapter", "background_encoder"]  # noqa: RUF012
    _callback_tensor_inputs = ["latents", "predicted"]  # noqa: RUF012
    model_cpu_offload_seq = (
        "image_encoder->sketch_encoder->reference_projection->foreground_adapter"
        "->background_encoder->unet->vae"
    )

    def __init__(
        self,
        unet: ColorizationUNet,
        sketch_encoder: SketchEncoder,
        reference_projection: ReferenceProjection,
        image_encoder: CLIPVisionModelWithProjection,
        vae: AutoencoderKL,
        scheduler: SchedulerMixin,
        tagger: Tagger | None = None,
        foreground_adapter: ForegroundAdapter | None = None,
        background_encoder: BackgroundEncoder | None = None,
        default_size: int = 1024,
        default_num_inference_steps: int = 20,
        default_guidance_scale: float = 2.0,
        default_background_strength: float = 1.0,
        use_tagger: bool = True,
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet,
            sketch_encoder=sketch_encoder,
            reference_projection=reference_projection,
            image_encoder=image_encoder,
            vae=vae,
            scheduler=scheduler,
            foreground_adapter=foreground_adapter,
            background_encoder=background_encoder,
        )
        self.register_to_config(
            default_size=default_size,
            default_num_inference_steps=default_num_inference_steps,
            default_guidance_scale=default_guidance_scale,
            default_background_strength=default_background_strength,
            use_tagger=use_tagger,
        )
        if tagger is None:
            raise ValueError("tagger: missing; a model without one has use_tagger=False instead")
        # ONNX Runtime's session is no torch module, so diffusers does not manage it.
        self.tagger = tagger
        self._interrupt = False
        self.reference_cache: ReferenceCache | None = None

    @classmethod
    def from_pretrained(cls, folder: str | Path, torch_dtype: torch.dtype | None = None) -> Self:
        """Loads a model folder; nothing is fetched and no pickle is read.

        Args:
            folder: Folder written by ``save_pretrained``.
            torch_dtype: Precision of the weights (None: fp32).

        Raises:
            ValueError: Naming the file that does not belong to the model.
            FileNotFoundError: If a component is missing.
        """
        return cls(**load_pipeline_parts(Path(folder), torch_dtype or torch.float32))

    @classmethod
    def from_model(cls, model: ColorizationModel, components: Path) -> Self:
        """A pipeline around a model in training.

        Args:
            model: The trained parts; they are used, not copied.
            components: Model folder of the frozen parts.
        """
        config = model.config
        return cls(
            **model.parts(),
            **load_frozen_parts(components),
            scheduler=build_scheduler(config.diffusion),
            **own_settings(config),
        )

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes a model folder: one sub-folder per component, safetensors only.

        Args:
            folder: Target; made if needed.
            dtype: Precision of the files of trained parts (None: as they are).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_pipeline_parts(self, folder, dtype)
        self.save_config(folder)

    def enable_vae_tiling(self, tile_size: int = 512) -> None:
        """Encodes and decodes in overlapping tiles: less memory for large pictures.

        Args:
            tile_size: Side of a tile, in pixels; smaller pictures stay whole.
        """
        self.vae.tile_sample_min_size = tile_size
        self.vae.tile_latent_min_size = tile_size // self._vae_scale
        self.vae.enable_tiling()

    def enable_reference_cache(self, max_entries: int = 64) -> None:
        """Remembers what the encoders make of references, for calls with the same ones.

        Args:
            max_entries: Encodings kept.
        """
        self.reference_cache = ReferenceCache(max_entries)

    @torch.no_grad()
    def preview(self, latents: torch.Tensor, side: int = 256) -> list[Image.Image]:
        """Small pictures of unfinished latents, for a fraction of the cost of the result.

        Args:
            latents: ``B x C x h x w``, as a step's callback gets them under ``predicted``.
            side: Longest side of a preview, in pixels.
        """
        scale = min(1.0, side / self._vae_scale / max(latents.shape[-2:]))
        small = F.interpolate(latents, scale_factor=scale, mode="area") if scale < 1 else latents
        return to_pictures(decode_latents(self.vae, small))

    def interrupt(self) -> None:
        """Ends a running call after the current step."""
        self._interrupt = True

    @torch.no_grad()
    def __call__(
        self,
        sketch: Image.Image | list[Image.Image],
        reference: Image.Image | list[Image.Image],
        foreground_mask: list[Image.Image] | Image.Image | None = None,
        reference_mask: list[Image.Image] | Image.Image | None = None,
        background: list[Image.Image] | Image.Image | None = None,
        seed: int | list[int] | None = None,
        callback_on_step_end: StepCallback | None = None,
        **controls: Any,
    ) -> ColorizationOutput:
        """Colours one or several sketches in one batch.

        A list gives one value per picture; a single value is used for all. All pictures of a call
        must come out in the same size.

        Args:
            sketch: Dark lines on white (or inverted), any size.
            reference: Picture whose colours are taken, any size.
            foreground_mask: Foreground of the sketch (None: found from its outline).
            reference_mask: Foreground of the reference (None: its alpha, or found).
            background: Picture whose background is taken (None: the reference's).
            seed: One seed per picture; a picture's result does not depend on its batch.
            callback_on_step_end: Called after every step with (pipeline, step, timestep,
                {"latents": ..., "predicted": ...}), the second being what the result would be
                like by now (see ``preview``); a returned dictionary may replace the latents.
            controls: ``num_inference_steps``, ``guidance_scale``, ``height``, ``width`` and all
                else in ``nurie.inference.controls.CONTROLS``; None stands for the default.

        Raises:
            ControlError: A control does not exist or is out of its range.
            ValueError: If numbers of pictures do not fit or sizes differ.
        """
        values = self._values(controls)
        pictures = self._prepare(
            sketch,
            reference,
            foreground_mask,
            reference_mask,
            background,
            values["height"],
            values["width"],
        )
        count = len(pictures)
        drawn = [secrets.randbelow(MAX_SEED + 1) for _ in range(count)] if seed is None else seed
        seeds = as_list(drawn, count, "seed")
        use_background = values["use_background_adapter"] and self.background_encoder is not None
        parts = self._parts(values["use_foreground_adapter"], use_background)
        guidance = Guidance(
            *(values[f"{name}guidance_scale"] for name in ("", "sketch_")),
            start=values["guidance_start"],
            end=values["guidance_end"],
        )
        with use_lora(self.unet, active=use_background):
            conditioning = build_conditioning(
                parts,
                pictures,
                Strengths.of(values),
                guided=guidance.reference > 1,
                separate_background=background is not None,
            )
            kept = None
            if values["inpaint_background"]:
                kept = kept_background(parts, pictures, values["mask_threshold"])
            latents = self._denoise(
                conditioning, guidance, kept, seeds, pictures[0], values, callback_on_step_end
            )
        images = to_pictures(decode_latents(self.vae, latents))
        self.maybe_free_model_hooks()
        keep_size = values["keep_size"] and values["height"] is None and values["width"] is None
        layered = [
            finish(image, picture, values["line_overlay"], keep_size)
            for image, picture in zip(images, pictures, strict=True)
        ]
        return ColorizationOutput(
            images=[picture.flatten() for picture in layered],
            seeds=seeds,
            layered=layered,
            controls=values,
        )

    def _values(self, controls: dict[str, Any]) -> dict[str, Any]:
        """Every control, checked, with this model's own sampling where nothing is said."""
        given = {name: value for name, value in controls.items() if value is not None}
        values: dict[str, Any] = parse_controls(given)
        for name in OWN_CONTROLS:
            if values[name] is None:
                values[name] = self.config[f"default_{name}"]
        return values

    def _prepare(
        self,
        sketch: Any,
        reference: Any,
        foreground_mask: Any,
        reference_mask: Any,
        background: Any,
        height: int | None,
        width: int | None,
    ) -> list[Prepared]:
        """Prepares all pictures of a call and checks that they have one size."""
        counts = [len(v) for v in (sketch, reference) if isinstance(v, (list, tuple))]
        count = max(counts, default=1)
        named = {
            "sketch": sketch,
            "reference": reference,
            "foreground_mask": foreground_mask,
            "reference_mask": reference_mask,
            "background": background,
        }
        lists = [as_list(value, count, name) for name, value in named.items()]
        side = self.config.default_size
        pictures = [prepare(*row, side, height, width) for row in zip(*lists, strict=True)]
        sizes = {(p.canvas.width, p.canvas.height) for p in pictures}
        if len(sizes) > 1:
            raise ValueError(f"pictures of one call must have one size, got {sorted(sizes)}")
        return pictures

    def _parts(self, use_foreground: bool, use_background: bool) -> Parts:
        device = str(self.image_encoder.device)
        encoder = ReferenceEncoder(self.image_encoder, self.tagger, self.config.use_tagger, device)
        latents = partial(encode_latents, self.vae)
        cache = self.reference_cache
        adapter = self.foreground_adapter if use_foreground else None
        return Parts(
            self.sketch_encoder,
            self.reference_projection,
            encoder if cache is None else cache.encode_images(encoder),
            latents if cache is None else cache.encode_latents(latents),
            adapter,
            adapter if cache is None or adapter is None else cache.encode_features(adapter),
            self.background_encoder if use_background else None,
            self.unet.config.projection_class_embeddings_input_dim,
            self.unet.num_blocks(),
            torch.device(self._execution_device),
            self.unet.dtype,
        )

    def _denoise(
        self,
        conditioning: Conditioning,
        guidance: Guidance,
        kept: KeptBackground | None,
        seeds: list[int],
        picture: Prepared,
        values: dict[str, Any],
        callback: StepCallback | None,
    ) -> torch.Tensor:
        """The sampling loop on a sampler of its own; every picture has a generator of its own."""
        self._interrupt = False
        height, width = (
            side // self._vae_scale for side in (picture.canvas.height, picture.canvas.width)
        )
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shape = (len(seeds), self.unet.config.in_channels, height, width)
        device = torch.device(self._execution_device)
        noise = randn_tensor(shape, generators, device=device, dtype=self.unet.dtype)
        scheduler = choose_scheduler(self.scheduler, values["scheduler"], values["karras_sigmas"])
        scheduler.set_timesteps(values["num_inference_steps"], device=device)

        def after_step(
            index: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]
        ) -> torch.Tensor | None:
            changed = callback(self, index, timestep, tensors) if callback else None
            return (changed or {}).get("latents")

        return denoise(
            self.unet,
            scheduler,
            noise,
            conditioning,
            guidance,
            generators,
            kept,
            self._until_interrupted,
            after_step,
        )

    @property
    def _vae_scale(self) -> int:
        """Pixels per latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def _until_interrupted(self, timesteps: Iterable) -> Iterator:
        """The timesteps, under a progress bar, until somebody calls ``interrupt``."""
        for timestep in cast("Iterable", self.progress_bar(timesteps)):
            if self._interrupt:
                return
            yield timestep
