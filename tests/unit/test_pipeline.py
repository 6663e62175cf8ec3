"""The pipeline on a tiny model: folders, seeds, sizes, controls that change the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from nurie.config.model import SamplingConfig
from nurie.inference.controls import CONTROLS, ControlError
from nurie.inference.pipeline import ColorizationPipeline
from nurie.inference.scheduler import SCHEDULERS
from nurie.models.foreground_encoder import ForegroundAdapter
from nurie.models.reference_encoder import ReferenceEncoder
from tests.tiny import randomise, tiny_components, tiny_model


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> ColorizationPipeline:
    components = tiny_components(tmp_path_factory.mktemp("components"))
    made = ColorizationPipeline.from_model(tiny_model(adapters=True).eval(), components)
    randomise(made.vae, seed=3)
    made.set_progress_bar_config(disable=True)
    return made


def drawing(width: int = 64, height: int = 64) -> Image.Image:
    image = Image.new("RGB", (width, height), "white")
    box = (width // 4, height // 4, 3 * width // 4, 3 * height // 4)
    ImageDraw.Draw(image).ellipse(box, outline="black", width=3)
    return image


def painting(seed: int = 0) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(colours).resize((64, 64), Image.Resampling.NEAREST)
    ImageDraw.Draw(image).rectangle((0, 0, 63, 10), fill="white")
    return image


def colour(pipeline: ColorizationPipeline, **changes: Any) -> np.ndarray:
    settings = {"sketch": drawing(), "reference": painting(), "num_inference_steps": 3, "seed": 1}
    settings["line_overlay"] = 0.0  # what the model makes, without the sketch's own lines over it
    return np.asarray(pipeline(**(settings | changes)).images[0], dtype=np.int16)


def test_a_saved_folder_makes_the_same_picture(
    pipeline: ColorizationPipeline, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded = ColorizationPipeline.from_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.bin")) and (tmp_path / "model_index.json").is_file()
    assert np.array_equal(colour(loaded), colour(pipeline))
    assert loaded.components.keys() == pipeline.components.keys()


def test_a_folder_keeps_the_models_own_sampling(tmp_path: Path) -> None:
    model = tiny_model().eval()
    sampling = SamplingConfig(num_inference_steps=2, guidance_scale=4.0)
    model.config = model.config.model_copy(update={"sampling": sampling})
    made = ColorizationPipeline.from_model(model, tiny_components(tmp_path / "components"))
    made.save_pretrained(tmp_path / "model")
    loaded = ColorizationPipeline.from_pretrained(tmp_path / "model")
    loaded.set_progress_bar_config(disable=True)
    own = colour(loaded, num_inference_steps=None, guidance_scale=None)
    assert np.array_equal(own, colour(loaded, num_inference_steps=2, guidance_scale=4.0))
    assert not np.array_equal(own, colour(loaded, num_inference_steps=2, guidance_scale=1.0))


def test_a_missing_component_is_named(pipeline: ColorizationPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "sketch_encoder").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="sketch_encoder"):
        ColorizationPipeline.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model_index\.json"):
        ColorizationPipeline.from_pretrained(tmp_path / "nothing")


def test_a_picture_does_not_depend_on_its_batch(pipeline: ColorizationPipeline) -> None:
    settings = {"num_inference_steps": 3, "guidance_scale": 2.0}
    both = pipeline([drawing()] * 2, [painting(0), painting(5)], seed=[7, 8], **settings).images
    alone = pipeline(drawing(), painting(5), seed=8, **settings).images[0]
    difference = np.abs(np.asarray(both[1], np.int16) - np.asarray(alone, np.int16))
    assert difference.max() <= 1
    assert np.abs(np.asarray(both[0], np.int16) - np.asarray(alone, np.int16)).max() > 4


CHANGES: list[dict[str, Any]] = [
    {"seed": 2},
    {"num_inference_steps": 5},
    {"guidance_scale": 1.0},
    {"guidance_scale": 5.0},
    {"guidance_start": 0.5},
    {"guidance_end": 0.5},
    {"sketch_guidance_scale": 3.0},
    {"scheduler": "dpmpp_2m_sde"},
    {"scheduler": "euler"},
    {"scheduler": "ddim"},
    {"scheduler": "unipc"},
    {"karras_sigmas": True},
    {"reference_strength": 0.3},
    {"foreground_reference_strength": 0.3},
    {"background_reference_strength": 0.3},
    {"encoder_reference_strength": 0.3},
    {"decoder_reference_strength": 0.3},
    {"merge_scale": 0.9},
    {"sketch_strength": 0.3},
    *({f"sketch_level_{level}": 0.0} for level in (1, 2, 3, 4)),
    {"foreground_strength": 0.3},
    {"background_strength": 0.3},
    {"inpaint_background": True},
    {"use_foreground_adapter": False},
    {"use_background_adapter": False},
    {"mask_threshold": 0.999},
    {"line_overlay": 1.0},
    {"keep_size": False},
    {"height": 96},
    {"width": 96},
    {"reference": painting(9)},
    {"background": painting(12)},
    {"foreground_mask": Image.new("L", (64, 64), 0)},
    {"reference_mask": Image.new("L", (64, 64), 0)},
]


def _name(change: dict) -> str:
    ((control, value),) = change.items()
    return control if isinstance(value, Image.Image) else f"{control}-{value}"


@pytest.mark.parametrize("change", CHANGES, ids=_name)
def test_every_control_changes_the_picture(
    pipeline: ColorizationPipeline, change: dict[str, Any]
) -> None:
    # Soft edges, so that a threshold decides something.
    mask = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(mask).ellipse((12, 12, 52, 52), fill=255)
    mask = mask.resize((8, 8), Image.Resampling.BOX).resize((64, 64))
    base: dict[str, Any] = {
        "sketch": drawing(68, 64),  # not the size that the model makes
        "foreground_mask": mask.resize((68, 64)),
        "background": painting(11),
        "guidance_scale": 2.0,
    }
    before, after = colour(pipeline, **base), colour(pipeline, **(base | change))
    assert before.shape != after.shape or np.abs(before - after).max() > 1


def test_every_control_is_swept() -> None:
    pictures = {"reference", "background", "foreground_mask", "reference_mask"}
    swept = {name for change in CHANGES for name in change}
    assert swept - pictures == {control.name for control in CONTROLS}


def test_an_inpainted_background_stays(pipeline: ColorizationPipeline) -> None:
    mask = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(mask).rectangle((0, 0, 31, 63), fill=255)
    last: list[torch.Tensor] = []
    for seed in (1, 2):
        made: list[torch.Tensor] = []

        def keep(
            pipe: Any, step: int, timestep: Any, values: dict, made: list[torch.Tensor] = made
        ) -> dict:
            made.append(values["latents"])
            return values

        base = {"foreground_mask": mask, "background": painting(4), "inpaint_background": True}
        colour(pipeline, seed=seed, callback_on_step_end=keep, **base)
        last.append(made[-1])
    assert torch.equal(last[0][..., 4:], last[1][..., 4:])
    assert not torch.isclose(last[0][..., :4], last[1][..., :4]).any()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_result_does_not_depend_on_its_batch_with_any_sampler(
    pipeline: ColorizationPipeline, name: str
) -> None:
    settings = {"num_inference_steps": 3, "scheduler": name}
    both = pipeline([drawing()] * 2, [painting(0), painting(5)], seed=[7, 8], **settings).images
    alone = pipeline(drawing(), painting(5), seed=8, **settings).images[0]
    difference = np.abs(np.asarray(both[1], np.int16) - np.asarray(alone, np.int16))
    assert difference.max() <= 1


def test_samplers_without_karras_spacing_say_so(pipeline: ColorizationPipeline) -> None:
    with pytest.raises(ControlError, match="karras_sigmas: the sampler ddim"):
        colour(pipeline, scheduler="ddim", karras_sigmas=True)
    with pytest.raises(ControlError, match="did you mean guidance_scale"):
        colour(pipeline, guidance_scala=2.0)


def test_sizes(pipeline: ColorizationPipeline) -> None:
    wide = {"sketch": drawing(200, 100), "num_inference_steps": 1}
    assert colour(pipeline, **wide).shape == (100, 200, 3)
    assert colour(pipeline, keep_size=False, **wide).shape == (32, 96, 3)
    assert colour(pipeline, height=64, width=128, **wide).shape == (64, 128, 3)
    with pytest.raises(ValueError, match="height: 70 is not .* a multiple of 32"):
        colour(pipeline, height=70, **wide)
    with pytest.raises(ValueError, match="one size"):
        pipeline([drawing(), drawing(200, 100)], painting(), num_inference_steps=1)
    with pytest.raises(ValueError, match="sketch: got 2 values for 3 pictures"):
        pipeline([drawing()] * 2, [painting()] * 3)


def test_callback_and_interruption(pipeline: ColorizationPipeline) -> None:
    steps: list[int] = []

    def stop_after_two(pipe: ColorizationPipeline, step: int, *_: Any) -> dict:
        steps.append(step)
        if step == 1:
            pipe.interrupt()
        return {}

    colour(pipeline, num_inference_steps=6, callback_on_step_end=stop_after_two)
    assert steps == [0, 1]


def test_adapters_run_once_per_picture(pipeline: ColorizationPipeline) -> None:
    calls: list[str] = []
    hooks = [
        getattr(pipeline, name).register_forward_hook(lambda *_, name=name: calls.append(name))
        for name in ("foreground_adapter", "background_encoder", "sketch_encoder")
    ]
    colour(pipeline, num_inference_steps=4)
    for hook in hooks:
        hook.remove()
    assert sorted(calls) == ["background_encoder", "foreground_adapter", "sketch_encoder"]


def test_a_remembered_reference_makes_the_same_picture(
    pipeline: ColorizationPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = drawing().transpose(Image.Transpose.ROTATE_90)
    plain = [colour(pipeline), colour(pipeline, sketch=other, seed=2)]
    calls: list[type] = []

    def count(kind: type, method: str) -> None:
        real = getattr(kind, method)

        def counted(*given: Any) -> Any:
            calls.append(kind)
            return real(*given)

        monkeypatch.setattr(kind, method, counted)

    count(ForegroundAdapter, "forward")
    count(ReferenceEncoder, "__call__")
    pipeline.enable_reference_cache(8)
    cache = pipeline.reference_cache
    try:
        for _ in range(2):
            np.testing.assert_array_equal(colour(pipeline), plain[0])
            np.testing.assert_array_equal(colour(pipeline, sketch=other, seed=2), plain[1])
    finally:
        pipeline.reference_cache = None
    assert cache is not None
    assert sorted(calls, key=str) == [ForegroundAdapter, ReferenceEncoder], "each once"
    # Tokens, the latents that both adapters start from, and the foreground's features.
    assert (cache.hits, cache.misses) == (13, 3)


@pytest.mark.parametrize("scheduler", ["default", *SCHEDULERS])
def test_previews_approach_the_result(pipeline: ColorizationPipeline, scheduler: str) -> None:
    foreseen: list[torch.Tensor] = []

    def keep(_: ColorizationPipeline, __: int, ___: torch.Tensor, tensors: dict) -> None:
        foreseen.append(tensors["predicted"])

    result = colour(pipeline, scheduler=scheduler, callback_on_step_end=keep)
    previews = [np.asarray(pipeline.preview(latents)[0], np.int16) for latents in foreseen]
    distances = [float(np.abs(preview - result).mean()) for preview in previews]
    # The last prediction is the result, up to the noise that some samplers stop at.
    assert distances[-1] <= min(distances) < 2
    small = pipeline.preview(foreseen[-1], side=32)[0]
    assert small.size == (32, 32)


def test_tiles_leave_no_seams() -> None:
    folder = Path(__file__).resolve().parents[2] / "assets" / "nano"
    pipe = ColorizationPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    large = {"height": 256, "width": 352, "num_inference_steps": 1, "guidance_scale": 1.0}
    whole = colour(pipe, **large)
    pipe.enable_vae_tiling(192)
    # Group norms see a tile instead of the picture, so that tones differ a little, but smoothly:
    # the second tile begins at 3/4 of the first and is blended in.
    difference = colour(pipe, **large) - whole
    assert 0 < np.abs(difference).mean() < 4
    steps = np.abs(np.diff(difference, axis=1)).mean((0, 2))
    assert steps[143] < 2 * steps.mean()


def test_bfloat16_makes_the_same_picture(pipeline: ColorizationPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    half = ColorizationPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert {part.dtype for part in (half.unet, half.vae, half.image_encoder)} == {torch.bfloat16}
    assert np.abs(colour(half) - colour(pipeline)).mean() < 4
