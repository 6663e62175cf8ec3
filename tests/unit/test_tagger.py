"""The tagger: the cut by structure, the pre-processing, and the bundled nano tagger."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from nurie.data.tagger import Tag, Tagger, preprocess
from nurie.data.tagger_graph import TaggerError, find_feature_map

SIZE, CHANNELS, TAGS = 16, 6, 4
NANO = Path(__file__).resolve().parents[2] / "assets" / "nano" / "tagger"


class SpatialTagger(nn.Module):
    """Pools a map with GlobalAveragePool, normalises the pooled vector, then scores it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 4, stride=4)
        self.squeeze = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.norm = nn.LayerNorm(CHANNELS)
        self.head = nn.Linear(CHANNELS, TAGS)

    def feature_map(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.conv(images.permute(0, 3, 1, 2) / 255)
        # A gate pooled from the same map: a pooling that must not be taken for the last one.
        return hidden * self.squeeze(nn.functional.adaptive_avg_pool2d(hidden, 1)).sigmoid()

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        return self.feature_map(images).flatten(2).transpose(1, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(self.feature_map(images), 1).flatten(1)
        return self.head(self.norm(pooled)).sigmoid()


class TokenTagger(nn.Module):
    """Normalises tokens (an average over channels), then averages them with ReduceMean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 4, stride=4)
        self.scale = nn.Parameter(torch.rand(CHANNELS) + 0.5)
        self.head = nn.Linear(CHANNELS, TAGS, bias=False)

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.conv(images.permute(0, 3, 1, 2) / 255)
        tokens = hidden.reshape(images.shape[0], CHANNELS, 16).transpose(1, 2)
        centred = tokens - tokens.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.tokens(images).mean(1)).sigmoid()


class MapTagger(SpatialTagger):
    """Averages a channels-first map with ReduceMean over both axes."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.feature_map(images).mean((2, 3))).sigmoid()


def export(network: nn.Module, file: Path, batch: int, dynamic: bool) -> onnx.ModelProto:
    torch.onnx.export(
        network.eval(),
        (torch.zeros(batch, SIZE, SIZE, 3),),
        str(file),
        dynamo=False,
        opset_version=18,
        input_names=["images"],
        output_names=["scores"],
        dynamic_axes={"images": {0: "batch"}, "scores": {0: "batch"}} if dynamic else None,
    )
    return onnx.load(file)


def random_images(count: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


TAG_LIST = [Tag("a", 0), Tag("b", 0), Tag("someone", 4), Tag("rating", 9)]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("network_type", [SpatialTagger, TokenTagger, MapTagger])
@pytest.mark.parametrize("dynamic", [True, False])
def test_tokens_are_the_map_before_the_last_pooling(tmp_path, network_type, dynamic):
    torch.manual_seed(0)
    network = network_type()
    model = export(network, tmp_path / "m.onnx", batch=2 if dynamic else 1, dynamic=dynamic)
    images = random_images(3)

    tokens = Tagger(model, TAG_LIST).tokens(images)

    expected = network.tokens(torch.from_numpy(preprocess(images, SIZE))).detach().numpy()
    assert tokens.shape == (3, 16, CHANNELS)
    np.testing.assert_allclose(tokens, expected, atol=1e-5)


def test_batch_baked_into_the_graph_is_run_one_by_one(tmp_path):
    class Baked(TokenTagger):
        def tokens(self, images: torch.Tensor) -> torch.Tensor:
            rows = super().tokens(images).reshape(16 * 1, CHANNELS)  # a batch of 1, hard-coded
            return rows.reshape(1, 16, CHANNELS) * 1

    torch.manual_seed(0)
    network = Baked()
    model = export(network, tmp_path / "m.onnx", batch=1, dynamic=False)
    images = random_images(2)

    tokens = Tagger(model, TAG_LIST).tokens(images)

    pixels = torch.from_numpy(preprocess(images, SIZE))
    expected = torch.cat([network.tokens(one) for one in pixels.split(1)]).detach().numpy()
    np.testing.assert_allclose(tokens, expected, atol=1e-5)


def test_graph_without_pooling_is_refused(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE * 3, TAGS), nn.Sigmoid())
    model = export(network, tmp_path / "m.onnx", batch=1, dynamic=True)
    with pytest.raises(TaggerError, match="no global pooling leads to the output 'scores'"):
        find_feature_map(model)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(TaggerError, match=r"no model\.onnx in"):
        Tagger.from_folder(tmp_path)


def test_pixels_are_bgr_and_transparency_is_white():
    red = np.zeros((1, 4, 4, 4), np.uint8)
    red[..., 0], red[:, :2, :, 3] = 255, 255

    pixels = preprocess(red, 4)

    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels[0, 0, 0], [0, 0, 255])
    np.testing.assert_array_equal(pixels[0, 3, 0], [255, 255, 255])


def test_oblong_pictures_are_padded_with_white():
    pixels = preprocess(np.zeros((1, 8, 4, 3), np.uint8), 8)
    np.testing.assert_array_equal(pixels[0, :, 2:6], 0)
    np.testing.assert_array_equal(pixels[0, :, [0, 1, 6, 7]], 255)


def test_tags_keep_to_the_threshold_of_their_category(tmp_path):
    network = SpatialTagger()
    network.head.weight.data.zero_()
    network.head.bias.data = torch.tensor([0.4, 0.3, 0.84, 1.0]).logit(1e-6)
    tagger = Tagger(export(network, tmp_path / "m.onnx", batch=2, dynamic=True), TAG_LIST)

    assert list(tagger.tags(random_images(1), 0.35, 0.85)[0]) == ["a"]
    assert list(tagger.tags(random_images(1), 0.35, 0.8)[0]) == ["someone", "a"]


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    model = export(SpatialTagger(), tmp_path / "model.onnx", batch=2, dynamic=True)
    with pytest.raises(TaggerError, match="gives 4 scores, its list of tags has 3"):
        Tagger(model, TAG_LIST[:3])
    (tmp_path / "selected_tags.csv").write_text("name,category\na,general\n")
    with pytest.raises(TaggerError, match=r"selected_tags\.csv, line 2: category: .*'general'"):
        Tagger.from_folder(tmp_path)
    (tmp_path / "model.onnx").write_text("hello")
    with pytest.raises(TaggerError, match=r"model\.onnx: not an ONNX model"):
        Tagger.from_folder(tmp_path)


def test_bundled_tagger_tells_colours_apart():
    tagger = Tagger.from_folder(NANO)
    pictures = np.zeros((2, 128, 128, 3), np.uint8)
    pictures[0, ..., 0], pictures[1, ..., 2] = 255, 255

    tokens, tags = tagger.tokens(pictures), tagger.tags(pictures, 0.0, 1.0)

    assert tokens.shape == (2, 64, 64)
    assert np.abs(tokens[0] - tokens[1]).mean() > 0.1
    assert tags[0]["red_background"] > tags[0]["blue_background"]
    assert tags[1]["blue_background"] > tags[1]["red_background"]
