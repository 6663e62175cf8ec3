"""What only a GPU can show: precision, offloading and compiled code there, and the real size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from benchmarks.dual_branch import shared_branches
from benchmarks.sizes import Problem
from nurie.config.loader import load_config
from nurie.config.model import ModelConfig
from nurie.config.train import EngineConfig
from nurie.inference.pipeline import ColorizationPipeline
from tests.ray.test_engines import Trainer, settings
from tests.tiny import CONFIGS, randomise, tiny_components, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
DEVICE = "cuda"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    components = tiny_components(tmp_path / "components")
    pipeline = ColorizationPipeline.from_model(tiny_model(adapters=True).eval(), components)
    randomise(pipeline.vae, seed=3)
    pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path, dtype: torch.dtype = torch.float32) -> ColorizationPipeline:
    pipeline = ColorizationPipeline.from_pretrained(folder, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def colour(pipeline: ColorizationPipeline) -> np.ndarray:
    sketch = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(sketch).ellipse((16, 16, 48, 48), outline="black", width=3)
    colours = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    reference = Image.fromarray(colours).resize((64, 64), Image.Resampling.NEAREST)
    result = pipeline(sketch, reference, num_inference_steps=3, seed=1)
    return np.asarray(result.images[0], dtype=np.int16)


def test_the_same_picture_as_on_a_cpu(folder: Path) -> None:
    assert np.abs(colour(load(folder).to("cuda")) - colour(load(folder))).max() <= 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_makes_the_same_picture(folder: Path, dtype: torch.dtype) -> None:
    half = colour(load(folder, dtype).to("cuda"))
    assert np.abs(half - colour(load(folder).to("cuda"))).mean() < 4


def test_offloaded_components_make_the_same_picture(folder: Path) -> None:
    offloaded = load(folder)
    offloaded.enable_model_cpu_offload()
    picture = colour(offloaded)
    assert offloaded.unet.device.type == "cpu"
    assert np.abs(picture - colour(load(folder).to("cuda"))).max() <= 1


def test_compiled_blocks_make_the_same_picture(folder: Path) -> None:
    pipeline = load(folder).to("cuda")
    eager = colour(pipeline)
    pipeline.unet.compile_repeated_blocks(fullgraph=True)
    assert np.abs(colour(pipeline) - eager).max() <= 2


def test_gradients_under_autocast_point_the_same_way() -> None:
    problem = Problem(device="cuda")
    gradients = []
    for autocast in (False, True):
        unet, encoder = problem.denoiser(), problem.sketch_encoder()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            loss = shared_branches(problem, unet, encoder)()
        loss.backward()
        found = [p.grad.flatten() for p in unet.parameters() if p.grad is not None]
        gradients.append(torch.cat(found))
    assert torch.cosine_similarity(*gradients, dim=0).item() > 0.99


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"compile": True},
        {"channels_last": True},
        {"gradient_checkpointing": True, "compile": True},
    ],
    ids=str,
)
def test_engine_options_take_the_same_steps(options: dict[str, Any]) -> None:
    plain, other = (
        Trainer(EngineConfig(kind="torch", use_gpu=True, **each), settings(), 1, DEVICE)
        for each in ({}, options)
    )
    expected, got = ([each.step() for _ in range(12)] for each in (plain, other))
    assert got[-1][1], "a step is taken"
    # fp16 looks for its scale by steps that it skips.
    compared = 1 if options.get("precision") == "fp16" else 12
    losses = [[loss for loss, _ in each[:compared]] for each in (expected, got)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05 if "precision" in options else 1e-3)


def test_adamw_in_8_bit_learns() -> None:
    pytest.importorskip("bitsandbytes")
    trainer = Trainer(EngineConfig(kind="torch", use_gpu=True), settings("adamw_8bit"), 1, DEVICE)
    losses = [trainer.step()[0] for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_sdxl_denoises_in_bfloat16_as_in_fp32() -> None:
    config = load_config(CONFIGS / "model" / "sdxl.yaml")
    assert isinstance(config, ModelConfig)
    exact = Problem(config, batch=1, side=128, device="cuda")
    unet, encoder = exact.denoiser().eval(), exact.sketch_encoder().eval()
    outputs = []
    for autocast in (False, True):
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            given = exact.conditioning(encoder(exact.sketch()))
            outputs.append(unet(exact.latents(), exact.timesteps(), given).sample.float())
    error = (outputs[1] - outputs[0]).norm() / outputs[0].norm()
    assert error.item() < 0.05
