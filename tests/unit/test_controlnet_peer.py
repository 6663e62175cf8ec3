"""ControlNet with IP-Adapter as a peer, from random weights saved as diffusers saves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nurie.config.evaluate import ControlNetConfig
from nurie.evaluation.controlnet import CONTROLNET, ControlNetPeer, controlnet_digest
from nurie.evaluation.networks import NetworkError
from tests.tiny_controlnet import tiny_controlnet


@pytest.fixture(scope="module", params=["1.5", "xl"])
def given(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ControlNetConfig:
    return tiny_controlnet(tmp_path_factory.mktemp("weights"), is_xl=request.param == "xl")


def changed(config: ControlNetConfig, **values: object) -> ControlNetConfig:
    return config.model_copy(update=values)


def test_sketch_reference_and_seed_decide(given: ControlNetConfig) -> None:
    rng = np.random.default_rng(0)
    sketch = np.full((24, 16), 255, np.uint8)
    other_sketch = sketch.copy()
    other_sketch[8:16] = 0
    red, blue = (rng.integers(0, 90, (20, 20, 3)).astype(np.uint8) + np.uint8(c) for c in (0, 160))
    peer = ControlNetPeer(given, "cpu")
    first = peer(sketch, red, 1)
    assert (first.shape, first.dtype) == ((24, 16, 3), np.uint8)
    assert np.array_equal(first, peer(sketch, red, 1))
    for other in (peer(other_sketch, red, 1), peer(sketch, blue, 1), peer(sketch, red, 2)):
        assert not np.array_equal(first, other)
    alone = ControlNetPeer(changed(given, ip_adapter_scale=0.0, controlnet_scale=0.0), "cpu")
    assert np.array_equal(alone(sketch, red, 1), alone(other_sketch, blue, 1))
    inverted = ControlNetPeer(changed(given, lines="black"), "cpu")
    assert np.array_equal(inverted(255 - other_sketch, red, 1), peer(other_sketch, red, 1))


def test_its_digest_follows_files_and_settings(given: ControlNetConfig) -> None:
    (name, digest), *_ = controlnet_digest(given).items()
    assert name == CONTROLNET
    assert controlnet_digest(given)[name] == digest
    assert controlnet_digest(changed(given, prompt="a"))[name] != digest
    assert controlnet_digest(None) == {}
    with pytest.raises(NetworkError, match=r"controlnet\.base: .* holds no safetensors"):
        controlnet_digest(changed(given, base=given.base / "tokenizer"))


def test_parts_of_different_families_are_refused(given: ControlNetConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    wrong = changed(given, ip_adapter=tmp_path / "other.safetensors")
    with pytest.raises(NetworkError, match="must be of one family"):
        ControlNetPeer(wrong, "cpu")
