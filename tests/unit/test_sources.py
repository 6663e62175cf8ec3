"""What a data set's bytes depend on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nurie.config.model import VaeConfig
from nurie.models.autoencoder import build_vae
from nurie_pipelines.data.sources import vae_digest

TINY = VaeConfig(
    block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False
)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return build_vae(TINY)


def digest_of(vae, folder: Path) -> str:
    vae.save_pretrained(folder)
    return vae_digest(folder)


def test_digest_follows_the_encoder_and_not_the_decoder(vae, tmp_path):
    before = digest_of(vae, tmp_path)
    vae.decoder.conv_out.weight.data += 1
    assert digest_of(vae, tmp_path) == before
    vae.encoder.conv_in.weight.data += 1
    changed = digest_of(vae, tmp_path)
    assert changed != before
    vae.register_to_config(latents_mean=[1.0] * 4, latents_std=[2.0] * 4)
    assert digest_of(vae, tmp_path) not in (before, changed)


def test_missing_autoencoder_names_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vae: .*config\.json.*leave 'vae' out"):
        vae_digest(tmp_path)
