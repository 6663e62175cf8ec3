"""``nurie colorize`` from files to files, with a tiny model."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from nurie.checkpoints.manifest import write_manifest
from nurie.inference.pipeline import ColorizationPipeline
from nurie.inference.recipe import read_recipe
from nurie_cli.main import main
from tests.tiny import tiny_components, tiny_config, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, a sketch and a reference."""
    folder = tmp_path_factory.mktemp("colorize")
    components = tiny_components(tmp_path_factory.mktemp("components"))
    model = tiny_model().eval()
    ColorizationPipeline.from_model(model, components).save_pretrained(folder / "model")
    write_manifest(folder / "model")
    sketch = Image.new("RGB", (70, 90), "white")
    ImageDraw.Draw(sketch).ellipse((10, 10, 60, 70), outline="black", width=3)
    sketch.save(folder / "sketch.png")
    Image.linear_gradient("L").convert("RGB").save(folder / "reference.jpg")
    return folder


def colorize(folder: Path, output: str, *flags: str) -> bytes:
    words = ["colorize", str(folder / "sketch.png"), "--reference", str(folder / "reference.jpg")]
    words += ["-o", str(folder / output), "--model", str(folder / "model"), *flags]
    assert main(words) == 0
    return (folder / output).read_bytes()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.int16)


def test_layers_and_the_same_picture_from_its_settings(folder: Path, capsys) -> None:
    flags = ["--seed", "5", "--num-inference-steps", "2", "--line-overlay", "0.5"]
    layered = colorize(folder, "first.ora", *flags)
    with zipfile.ZipFile(io.BytesIO(layered)) as archive:
        merged = pixels(archive.read("mergedimage.png"))
        line = np.asarray(Image.open(archive.open("data/line.png")))
        mask = np.asarray(Image.open(archive.open("data/mask.png")))
    assert merged.shape == (90, 70, 3)
    assert line.min() < 50 and line[0, 0] == 255
    assert (mask[45, 35], mask[0, 0]) == (255, 0)
    recipe = read_recipe(layered)
    assert recipe.model.startswith("model sha256:")
    assert (recipe.seed, recipe.controls["num_inference_steps"]) == (5, 2)
    # What the model decided is written down too.
    assert recipe.controls["guidance_scale"] == tiny_config().sampling.guidance_scale

    again = colorize(folder, "again.png", "--settings-from", str(folder / "first.ora"))
    assert np.array_equal(pixels(again), merged)
    assert read_recipe(again) == recipe
    assert "note:" not in capsys.readouterr().err

    changed = colorize(
        folder, "new.psd", "--settings-from", str(folder / "again.png"), "--seed", "6"
    )
    assert read_recipe(changed).values == recipe.values | {"seed": 6}
    assert not np.array_equal(pixels(changed), merged)


def test_settings_of_another_model_are_noted(folder: Path, capsys) -> None:
    data = colorize(folder, "own.png", "--seed", "1", "--num-inference-steps", "1")
    digest = read_recipe(data).model.split(":")[1]
    (folder / "other.png").write_bytes(data.replace(digest.encode(), b"0" * 12))
    colorize(folder, "own.webp", "--settings-from", str(folder / "other.png"), "--no-metadata")
    assert "a picture by model sha256:000000000000" in capsys.readouterr().err
    assert b"nurie" not in (folder / "own.webp").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-o", "a.gif"], "a.gif: the name must end in one of .png, .webp, .jpeg, .psd, .ora"),
        (["-o", "a.png", "--settings-from", "SKETCH"], "holds no settings of nurie"),
        (["-o", "a.png", "--settings-from", "gone.png"], "gone.png: no such file"),
    ],
)
def test_what_the_user_can_correct(folder: Path, capsys, flags: list[str], message: str) -> None:
    sketch = str(folder / "sketch.png")
    words = [sketch if word == "SKETCH" else word for word in flags]
    assert main(["colorize", sketch, "--reference", sketch, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
