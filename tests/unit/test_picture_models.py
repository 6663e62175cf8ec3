"""ONNX models of the user's own, and what a build does with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from torch import nn

from nurie.config.data import DataConfig, PictureModelConfig, PicturesSource, ScoreModelConfig
from nurie.data.picture_models import PictureMap, PictureModelError, PictureScore
from nurie.data.pixels import decode_pixels, encode_pixels
from nurie_pipelines.data.models import ApplyModels

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Red(nn.Module):
    """The red channel, as B x 1 x H x W."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, :1] * 1.0


def export(network: nn.Module, file: Path, example: torch.Tensor, dynamic: bool = True) -> Path:
    names = {"pixels": {2: "height", 3: "width"}} if dynamic else None
    torch.onnx.export(
        network,
        (example,),
        str(file),
        dynamo=False,
        opset_version=18,
        input_names=["pixels"],
        dynamic_axes=names,
    )
    return file


@pytest.fixture
def red(tmp_path: Path) -> Path:
    return export(Red(), tmp_path / "red.onnx", torch.zeros(1, 3, 32, 32))


def half_red(height: int = 64, width: int = 96) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2] = (255, 0, 51)
    return image


def test_a_map_has_the_pictures_size(red: Path) -> None:
    found = PictureMap(PictureModelConfig(path=red))(half_red())
    assert (found.shape, found.dtype) == ((64, 96), np.float32)
    assert (found[:, :48] == 1).all() and (found[:, 48:] == 0).all()


def test_what_a_model_expects_is_kept_to(red: Path) -> None:
    inverted = PictureMap(PictureModelConfig(path=red, invert=True))(half_red())
    assert (inverted[:, :48] == 0).all()
    blue = PictureMap(PictureModelConfig(path=red, bgr=True))(half_red())
    assert blue[0, 0] == pytest.approx(0.2)
    config = PictureModelConfig(path=red, mean=(0.5, 0, 0), std=(2, 1, 1))
    assert PictureMap(config)(half_red())[0, 0] == pytest.approx(0.25)


def test_models_of_a_fixed_size_are_fed_that_size(tmp_path: Path) -> None:
    file = export(Red(), tmp_path / "fixed.onnx", torch.zeros(1, 3, 48, 48), dynamic=False)
    assert PictureMap(PictureModelConfig(path=file))(half_red()).shape == (64, 96)


def test_models_of_another_form_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(PictureModelError, match=r"gone\.onnx: there is no such file"):
        PictureMap(PictureModelConfig(path=tmp_path / "gone.onnx"))
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(PictureModelError, match=r"text\.onnx: not an ONNX model"):
        PictureMap(PictureModelConfig(path=tmp_path / "text.onnx"))
    file = export(nn.Identity(), tmp_path / "grey.onnx", torch.zeros(1, 1, 8, 8))
    with pytest.raises(PictureModelError, match="B x 3 x H x W or B x H x W x 3 is needed"):
        PictureMap(PictureModelConfig(path=file))
    file = export(nn.Identity(), tmp_path / "three.onnx", torch.zeros(1, 3, 32, 32))
    assert onnx.load(file).graph.input[0].name == "pixels"
    with pytest.raises(PictureModelError, match="one value per pixel is needed"):
        PictureMap(PictureModelConfig(path=file))(half_red())


def test_a_build_gets_a_sketch_and_the_missing_masks(red: Path) -> None:
    model = PictureModelConfig(path=red)
    source = PicturesSource(kind="folder", path="x")
    config = DataConfig(
        name="x", source=source, output=Path("y"), line_model=model, mask_model=model
    )
    given = np.zeros((64, 96), np.uint8)
    table = pa.table(
        {
            "image": [encode_pixels(half_red())] * 2,
            "sketches": [[encode_pixels(given)]] * 2,
            "sketch_styles": [["xdog"]] * 2,
            "mask": [encode_pixels(given), encode_pixels(np.full_like(given, 255))],
            "other": [1, 2],
        }
    )
    rows = ApplyModels(config)(table).to_pylist()
    assert [row["sketch_styles"] for row in rows] == [["xdog", "model"]] * 2
    assert (decode_pixels(rows[0]["sketches"][1])[:, :48] == 255).all()
    assert (decode_pixels(rows[0]["mask"]) == 0).all()
    found = decode_pixels(rows[1]["mask"])
    assert (found[:, :48] == 255).all() and (found[:, 48:] == 0).all()
    assert [row["other"] for row in rows] == [1, 2]


class MeanColour(nn.Module):
    """Mean of every channel, B x 3."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean(dim=(2, 3))


def test_a_score_is_one_number_of_the_answer(tmp_path: Path, red: Path) -> None:
    file = export(MeanColour(), tmp_path / "mean.onnx", torch.zeros(1, 3, 32, 32))
    image = half_red()
    assert PictureScore(ScoreModelConfig(path=file))(image) == pytest.approx(0.5, abs=1e-3)
    blue = PictureScore(ScoreModelConfig(path=file, output_index=2))(image)
    assert blue == pytest.approx(0.1, abs=1e-3)
    with pytest.raises(PictureModelError, match="answers 3 numbers; output_index is 5"):
        PictureScore(ScoreModelConfig(path=file, output_index=5))(image)
    fixed = export(Red(), tmp_path / "fixed.onnx", torch.zeros(1, 3, 16, 16), dynamic=False)
    config = ScoreModelConfig(path=fixed, scale=1e-38)
    with pytest.raises(PictureModelError, match="answers inf"):
        PictureScore(config)(image)


def test_settings_without_effect_are_refused(red: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name a model in aesthetic_model"):
        PicturesSource(kind="folder", path=str(tmp_path), min_aesthetic_score=5)
    scored = ScoreModelConfig(path=red)
    PicturesSource(kind="folder", path=str(tmp_path), min_aesthetic_score=5, aesthetic_model=scored)
