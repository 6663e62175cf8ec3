"""Ingestion through Ray Data: the rows a trainer gets, for any number of workers and any start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nurie.config.data import CharactersSource, DataConfig, PicturesSource, ReadConfig
from nurie.config.loader import load_config
from nurie.config.model import ModelConfig
from nurie.config.train import BackboneStage, BackgroundStage, ForegroundStage
from nurie.data.pixels import decode_pixels
from nurie.data.shards import ShardReader
from nurie.data.tags import all_tags
from nurie.models.autoencoder import build_vae
from nurie.models.image_encoder import build_image_encoder
from nurie.models.reference_encoder import ReferenceEncoder
from nurie.models.tagger_network import TaggerNetwork
from nurie.training.batch import make_batch
from nurie.training.tagger_export import export_tagger
from nurie_pipelines.data import ingest
from nurie_pipelines.data.build import build_dataset
from nurie_pipelines.data.ingest import training_dataset
from nurie_pipelines.data.latents import LatentEncoder
from nurie_pipelines.train.worker import as_tensors
from tests.pictures import MIXED_RATIOS, mixed_shapes

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

TINY = Path(__file__).parents[2] / "configs" / "model" / "tiny.yaml"
BATCH = 8


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    preset = load_config(TINY)
    assert isinstance(preset, ModelConfig)
    return preset


@pytest.fixture(scope="module")
def components(model, tmp_path_factory) -> Path:
    """Untrained frozen parts of the tiny preset."""
    torch.manual_seed(0)
    folder, reference = tmp_path_factory.mktemp("components"), model.reference
    build_vae(model.vae).save_pretrained(folder / "vae")
    build_image_encoder(reference).save_pretrained(folder / "image_encoder")
    tagger = TaggerNetwork(len(all_tags()), reference.tagger_token_dim)
    tags = torch.ones(1, len(all_tags()))
    export_tagger(tagger, reference.tagger_image_size, tags, folder / "tagger")
    return folder


def build(folder: Path, vae: Path | None) -> ReadConfig:
    source = CharactersSource(palettes_per_character=2, max_characters=24)
    # At an address, as an object store has one: what is tested here works there, too.
    place = folder.as_uri()
    config = DataConfig(
        name="t", source=source, output=place, image_size=64, rows_per_shard=20, vae=vae
    )
    build_dataset(config)
    return ReadConfig(shards=place, same_palette_probability=0.5)


@pytest.fixture(scope="module")
def read(ray_session, components, tmp_path_factory) -> ReadConfig:
    return build(tmp_path_factory.mktemp("shards"), components / "vae")


def collect(dataset, rows: int) -> dict[str, np.ndarray]:
    batches = list(dataset.iter_batches(batch_size=rows, batch_format="numpy"))
    assert all(len(batch["position"]) == rows for batch in batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def assert_same(first: np.ndarray, second: np.ndarray, name: str) -> None:
    if first.dtype == np.float16:
        # Matrix products of other batch sizes may round another way.
        np.testing.assert_allclose(first.astype(float), second.astype(float), atol=5e-3)
    else:
        assert np.array_equal(first, second), name


@pytest.fixture(scope="module")
def whole(read, model, components) -> dict[str, np.ndarray]:
    dataset = training_dataset(read, model, components, BackboneStage(steps=1), BATCH, 10, 0, 5)
    return collect(dataset, BATCH)


def test_columns_and_shapes(whole, model):
    tokens, width = model.reference.num_tokens, model.reference.image_token_dim
    rows = 10 * BATCH
    assert {name: (values.shape, values.dtype.name) for name, values in whole.items()} == {
        "position": ((rows,), "int64"),
        "sample_id": ((rows,), "object"),
        "latents": ((rows, 4, 8, 8), "float16"),
        "sketch": ((rows, 64, 64), "uint8"),
        "foreground_mask": ((rows, 64, 64), "uint8"),
        "original_area": ((rows,), "float32"),
        "aesthetic_score": ((rows,), "float32"),
        "image_tokens": ((rows, 1 + tokens, width), "float16"),
        "tagger_tokens": ((rows, tokens, model.reference.tagger_token_dim), "float16"),
        "mismatched_image_tokens": ((rows, 1 + tokens, width), "float16"),
        "mismatched_tagger_tokens": (
            (rows, tokens, model.reference.tagger_token_dim),
            "float16",
        ),
    }
    assert whole["position"].tolist() == list(range(rows))


def test_later_start_gives_the_tail(whole, read, model, components):
    dataset = training_dataset(read, model, components, BackboneStage(steps=1), BATCH, 7, 3, 5)
    tail = collect(dataset, BATCH)
    for name, values in whole.items():
        assert_same(values[3 * BATCH :], tail[name], name)


def test_more_rows_than_may_wait_come_through(read, model, components, monkeypatch):
    """With room for a few blocks only, the feed must not stand still."""
    monkeypatch.setattr(ingest, "BLOCK_BYTES", 2**16)
    monkeypatch.setattr(ingest, "OBJECT_STORE_BYTES", 2**20)
    dataset = training_dataset(read, model, components, BackboneStage(steps=1), BATCH, 60, 0, 5)
    rows = collect(dataset, BATCH)
    assert rows["position"].tolist() == list(range(60 * BATCH))
    assert sum(values.nbytes for values in rows.values()) > 4 * 2**20


def test_two_workers_share_every_global_batch(whole, read, model, components):
    what = (read, model, components, BackboneStage(steps=1), BATCH, 10, 0, 5)
    datasets = [training_dataset(*what, rank=rank, num_workers=2) for rank in range(2)]
    parts = [collect(dataset, BATCH // 2) for dataset in datasets]
    for name, values in whole.items():
        shape = (10, BATCH // 2, *values.shape[1:])
        together = np.stack([part[name].reshape(shape) for part in parts], axis=1)
        assert_same(values, together.reshape(values.shape), name)


def test_tokens_are_those_of_the_chosen_pictures(whole, read, components):
    reader = ShardReader(read.shards, "train")
    encoder = ReferenceEncoder.from_folder(components)
    for place in (0, 7, 50, 79):
        sample_id = whole["sample_id"][place]
        row = reader.read([reader.row_of[sample_id]], ["mismatched_ids"])[0]
        chosen = row["mismatched_ids"][place // len(reader) % len(row["mismatched_ids"])]
        picture = reader.read([reader.row_of[chosen]], ["image"])[0]["image"]
        image_tokens, tagger_tokens = encoder(decode_pixels(picture)[None])
        for name, expected in (("image", image_tokens), ("tagger", tagger_tokens)):
            found = whole[f"mismatched_{name}_tokens"][place]
            np.testing.assert_allclose(found, expected[0], atol=5e-3)


def test_adapter_stages_get_pictures(read, model, components):
    foreground = collect(
        training_dataset(read, model, components, ForegroundStage(steps=1), 4, 2, 0, 5), 4
    )
    background = collect(
        training_dataset(read, model, components, BackgroundStage(steps=1), 4, 2, 0, 5), 4
    )
    assert foreground["reference_image"].shape == (8, 64, 64, 3)
    assert foreground["reference_mask"].shape == (8, 64, 64)
    assert set(background) ^ set(foreground) == {"image", "background_image", "reference_image"}
    assert not any(name.startswith("mismatched") for name in background)


def test_batches_of_several_shapes_become_tensors(model, components, tmp_path, ray_session):
    config = DataConfig(
        name="t",
        source=PicturesSource(
            kind="folder", path=str(mixed_shapes(tmp_path / "in")), test_fraction=0
        ),
        output=tmp_path / "out",
        image_size=64,
        aspect_ratios=MIXED_RATIOS,
        vae=components / "vae",
    )
    build_dataset(config)
    read = ReadConfig(shards=config.output)
    dataset = training_dataset(read, model, components, BackgroundStage(steps=1), 4, 24, 0, 5)
    (rows,) = dataset.streaming_split(1, equal=False)
    shapes = set()
    for columns in rows.iter_batches(batch_size=2, batch_format="numpy", prefetch_batches=2):
        batch = as_tensors(columns, torch.device("cpu"))
        shape = batch["sketch"].shape[1:]
        shapes.add(tuple(shape))
        for name in ("foreground_mask", "reference_mask", "image", "background_image"):
            assert batch[name].shape[:3] == (2, *shape)
        assert [8 * side for side in batch["latents"].shape[2:]] == list(shape)
        assert make_batch(batch, model.unet.added_embedding_dim).latents.shape[0] == 2
    assert shapes == {(32, 96), (64, 64), (96, 32)}


def test_missing_latents_are_encoded_on_the_way(whole, model, components, tmp_path, ray_session):
    read = build(tmp_path, None)
    rows = collect(
        training_dataset(read, model, components, BackboneStage(steps=1), BATCH, 2, 0, 5), BATCH
    )
    assert "image" not in rows
    reader = ShardReader(tmp_path, "train")
    picture = reader.read([reader.row_of[rows["sample_id"][3]]], ["image"])[0]["image"]
    expected = LatentEncoder(components / "vae").encode(decode_pixels(picture)[None])[0]
    np.testing.assert_allclose(rows["latents"][3], expected, atol=5e-3)


def test_impossible_requests_are_refused(read, model, components):
    with pytest.raises(ValueError, match="batch_size 2 leaves worker 0 of 3 no sample"):
        training_dataset(read, model, components, BackboneStage(steps=1), 2, 1, 0, 5, num_workers=3)
    with pytest.raises(ValueError, match="num_batches"):
        training_dataset(read, model, components, BackboneStage(steps=1), 8, 0, 0, 5)
