"""Rows of a training run: what they hold, and that their place alone decides it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from nurie.config.data import CharactersSource, DataConfig, ReadConfig, ReferenceAugmentation
from nurie.config.train import BackboneStage, BackgroundStage, ForegroundStage
from nurie.data.assets import find_assets
from nurie.data.augment import augment_reference
from nurie.data.characters import load_characters
from nurie.data.manifest import Manifest, ShardEntry, write_manifest
from nurie.data.pixels import decode_pixels
from nurie.data.plan import plan_characters
from nurie.data.shards import ShardReader
from nurie_pipelines.data.latents import append_latents
from nurie_pipelines.data.load import Loader, load_chunk
from nurie_pipelines.data.render import render_shard
from nurie_pipelines.data.write import SHARD_COLUMN, write_shard

ROWS, ROUNDS, BATCH = 48, 3, 8
COLUMNS = ("sample_id", "image", "mask", "sketches", "mismatched_ids", "same_palette_ids")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    source = CharactersSource(palettes_per_character=2, max_characters=24)
    config = DataConfig(
        name="t", source=source, output=folder, image_size=32, seed=2, mismatch_rounds=ROUNDS
    )
    assets, entries = find_assets("characters"), []
    plan = plan_characters(config, source, load_characters(assets))
    for shard in plan.shards(20):
        rows = render_shard(plan.table(shard.start, shard.stop), config, assets)
        rows = rows.append_column(SHARD_COLUMN, [[shard.file] * rows.num_rows])
        rows = append_latents(rows, [None] * rows.num_rows, ())
        done = write_shard(rows, folder, "test").to_pylist()[0]
        entries.append(
            ShardEntry(split=shard.split, bucket=shard.bucket, rows=rows.num_rows, **done)
        )
    manifest = Manifest(
        name="t",
        created_by="test",
        config={},
        inputs={},
        counts={"train": ROWS, "test": ROWS},
        image_size=32,
        sketch_styles=config.line_styles,
        roles=(),
        latent_channels=None,
        mismatch_rounds=ROUNDS,
        shards=tuple(entries),
    )
    write_manifest(folder, manifest)
    return folder


def load(shards: Path, batches: int, start: int = 0, rank: int = 0, workers: int = 1, **changes):
    """All rows of one worker, as one dictionary of columns."""
    rows = BATCH // workers
    settings = {
        "read": ReadConfig(shards=shards, **changes.pop("read", {})),
        "stage": BackboneStage(steps=1),
        "seed": 11,
        "batch_size": BATCH,
        "rows_per_batch": rows,
        "offset": rank * rows,
        "first_batch": start,
        "end_batch": start + batches,
        "batches_per_chunk": 4,
    }
    loader = Loader(**(settings | changes))
    chunks = np.arange(-(-batches // 4))
    made = list(load_chunk({"id": chunks}, loader))
    assert all(len(batch["position"]) == rows for batch in made)
    return {name: np.concatenate([batch[name] for batch in made]) for name in made[0]}


@pytest.fixture(scope="module")
def by_id(shards) -> dict[str, dict]:
    reader = ShardReader(shards, "train")
    rows = reader.read(range(len(reader)), COLUMNS)
    return {row["sample_id"]: row for row in rows}


def test_every_sample_comes_once_per_epoch(shards, by_id):
    rows = load(shards, 2 * ROWS // BATCH)
    assert rows["position"].tolist() == list(range(2 * ROWS))
    ids = rows["sample_id"].tolist()
    assert sorted(ids[:ROWS]) == sorted(ids[ROWS:]) == sorted(by_id)
    assert ids[:ROWS] != ids[ROWS:]


@pytest.mark.parametrize("start", [1, 5, 9])
def test_a_later_start_gives_the_tail(shards, start):
    whole, tail = load(shards, 12), load(shards, 12 - start, start)
    for name, values in whole.items():
        assert np.array_equal(values[start * BATCH :], tail[name]), name


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_share_every_global_batch(shards, workers):
    whole = load(shards, 6)
    parts = [load(shards, 6, rank=rank, workers=workers) for rank in range(workers)]
    for name, values in whole.items():
        shape = (6, BATCH // workers, *values.shape[1:])
        together = np.stack([part[name].reshape(shape) for part in parts], axis=1)
        assert np.array_equal(together.reshape(values.shape), values), name


def test_mismatched_reference_is_the_chosen_one_of_the_epoch(shards, by_id):
    rows = load(shards, 4 * ROWS // BATCH)
    for place, sample_id in enumerate(rows["sample_id"]):
        chosen = by_id[sample_id]["mismatched_ids"][place // ROWS % ROUNDS]
        assert np.array_equal(
            rows["mismatched_image"][place], decode_pixels(by_id[chosen]["image"])
        )


def test_target_columns_are_the_stored_ones(shards, by_id):
    rows = load(shards, 3)
    for place, sample_id in enumerate(rows["sample_id"]):
        stored = by_id[sample_id]
        assert np.array_equal(rows["image"][place], decode_pixels(stored["image"]))
        assert np.array_equal(rows["foreground_mask"][place], decode_pixels(stored["mask"]))
    assert (rows["original_area"] == 32 * 32).all()


def test_sketches_are_single_or_blended_styles(shards, by_id):
    rows = load(shards, 3 * ROWS // BATCH)
    kinds: Counter[int | str] = Counter()
    for sketch, sample_id in zip(rows["sketch"], rows["sample_id"], strict=True):
        styles = [decode_pixels(data) for data in by_id[sample_id]["sketches"]]
        same = [number for number, style in enumerate(styles) if np.array_equal(style, sketch)]
        kinds[same[0] if same else "blend"] += 1
        assert (sketch >= np.min(styles, axis=0)).all()
        assert (sketch <= np.max(styles, axis=0)).all()
    assert set(kinds) == {0, 1, 2, "blend"}
    assert 0.15 < kinds["blend"] / (3 * ROWS) < 0.45


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_aligned_reference_is_the_own_picture_or_a_relative(shards, by_id, probability):
    still = ReferenceAugmentation(
        max_rotation=0, max_shift=0, min_scale=1, erase_probability=0, flip_probability=0
    )
    read = {"same_palette_probability": probability, "augmentation": still}
    rows = load(shards, 6, read=read, stage=ForegroundStage(steps=1))
    for place, sample_id in enumerate(rows["sample_id"]):
        stored = by_id[sample_id]
        allowed = stored["same_palette_ids"] if probability else [sample_id]
        pictures = [decode_pixels(by_id[other]["image"]) for other in allowed]
        augmented = [augment_reference(p, np.random.default_rng(0), still) for p in pictures]
        matches = [np.array_equal(p, rows["reference_image"][place]) for p in augmented]
        assert any(matches)
        mask = decode_pixels(by_id[allowed[matches.index(True)]]["mask"])
        assert np.array_equal(rows["reference_mask"][place], mask)


def test_augmentation_differs_from_epoch_to_epoch(shards):
    rows = load(shards, 2 * ROWS // BATCH)
    first = dict(zip(rows["sample_id"][:ROWS], rows["reference_image"][:ROWS], strict=True))
    again = zip(rows["sample_id"][ROWS:], rows["reference_image"][ROWS:], strict=True)
    assert not any(np.array_equal(first[sample_id], image) for sample_id, image in again)


def test_columns_follow_the_stage(shards):
    common = {"position", "sample_id", "sketch", "foreground_mask", "original_area"}
    common |= {"aesthetic_score", "reference_image", "image"}
    assert set(load(shards, 1)) == common | {"mismatched_image"}
    assert set(load(shards, 1, stage=ForegroundStage(steps=1))) == common | {"reference_mask"}
    background = load(shards, 1, stage=BackgroundStage(steps=1))
    assert set(background) == common | {"reference_mask", "background_image"}


def test_background_rows_are_bleached_inpainted_and_disturbed(shards, by_id):
    def rows(**probabilities: float):
        none = {"bleach": 0, "inpaint": 0, "mask_noise": 0}
        named = {f"{k}_probability": v for k, v in (none | probabilities).items()}
        return load(shards, 2, stage=BackgroundStage(steps=1, **named))

    plain = rows()
    assert np.array_equal(plain["background_image"], plain["reference_image"])
    bleached = rows(bleach=1)
    outside = bleached["foreground_mask"] == 0
    assert (bleached["image"][outside] >= 235).all()
    assert (bleached["sketch"][outside] == 255).all()
    assert not (plain["image"][outside] >= 235).all()
    inpainted = rows(inpaint=1)
    for place, sample_id in enumerate(inpainted["sample_id"]):
        other = by_id[by_id[sample_id]["mismatched_ids"][0]]
        mask = decode_pixels(other["mask"])
        assert np.array_equal(inpainted["reference_mask"][place], mask)
        far = cv2.dilate(mask, np.ones((9, 9), np.uint8)) == 0
        own = decode_pixels(by_id[sample_id]["image"])
        assert np.array_equal(inpainted["background_image"][place][far], own[far])
    disturbed = rows(mask_noise=1)
    assert not np.array_equal(disturbed["reference_mask"], plain["reference_mask"])
