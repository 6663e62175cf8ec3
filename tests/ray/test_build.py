"""Whole data builds: the same bytes however they came about."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from nurie.config.data import (
    CharactersSource,
    DataConfig,
    PicturesSource,
    ReadConfig,
    TaggerConfig,
)
from nurie.config.model import VaeConfig
from nurie.config.train import BackboneStage
from nurie.data.manifest import Manifest, read_manifest, read_quarantine
from nurie.data.pixels import decode_pixels
from nurie.data.plan import palette_from_json
from nurie.data.shards import ShardReader
from nurie.models.autoencoder import build_vae, encode_latents
from nurie_pipelines.data.build import build_dataset
from nurie_pipelines.data.inspect import inspect_dataset, write_contact_sheet
from nurie_pipelines.data.load import Loader, load_chunk
from nurie_pipelines.data.resume import BuildError
from tests.pictures import MIXED_RATIOS, mixed_shapes

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

TAGGER = Path(__file__).parents[2] / "assets" / "nano" / "tagger"
TINY_VAE = VaeConfig(
    block_out_channels=(8, 8, 8, 8),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
    mid_block_add_attention=False,
)


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("components") / "vae"
    build_vae(TINY_VAE).save_pretrained(folder)
    return folder


def characters_config(output: Path, **changes) -> DataConfig:
    settings = {
        "name": "test",
        "source": CharactersSource(palettes_per_character=2, max_characters=20),
        "output": output,
        "image_size": 64,
        "rows_per_shard": 16,
        "seed": 3,
    }
    return DataConfig(**(settings | changes))


def digests(manifest: Manifest) -> dict[str, str]:
    return {shard.file: shard.sha256 for shard in manifest.shards}


@pytest.fixture(scope="module")
def built(ray_session, vae_folder, tmp_path_factory) -> tuple[DataConfig, Manifest]:
    config = characters_config(tmp_path_factory.mktemp("built"), vae=vae_folder)
    return config, build_dataset(config)


def test_build_gives_what_the_manifest_says(built):
    config, manifest = built
    assert manifest.counts == {"train": 40, "test": 40}
    assert manifest.latent_channels == 4
    assert read_manifest(config.output, verify=True) == manifest
    reader = ShardReader(config.output, "train")
    assert len(reader) == 40


def test_rows_hold_exact_truth(built, vae_folder):
    config, manifest = built
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(vae_folder)
    columns = (
        "image",
        "labels",
        "mask",
        "palette",
        "roles",
        "sketches",
        "latents",
        "latents_shape",
    )
    for row in ShardReader(config.output, "test").read([0, 17, 39], columns):
        image, labels = decode_pixels(row["image"]), decode_pixels(row["labels"])
        assert np.array_equal(decode_pixels(row["mask"]) == 255, labels > 0)
        assert row["roles"] == list(manifest.roles)
        hair = np.asarray(palette_from_json(row["palette"])["hair"]) * 255
        closest = np.abs(image[labels == row["roles"].index("hair")] - hair).max(axis=1).min()
        assert closest <= 40  # shading may darken it, but the hair has the palette's colour
        sketches = [decode_pixels(data) for data in row["sketches"]]
        assert len(sketches) == len(config.line_styles)
        assert all(np.median(sketch) > 200 and sketch.min() < 160 for sketch in sketches)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            expected = encode_latents(vae, pixels)[0].numpy()
        stored = np.frombuffer(row["latents"], np.float16).reshape(row["latents_shape"])
        np.testing.assert_allclose(stored, expected, atol=2e-3)


def test_damaged_and_missing_shards_come_back_with_the_same_bytes(built):
    config, manifest = built
    files = [shard.file for shard in manifest.shards]
    (config.output / files[0]).unlink()
    with open(config.output / files[2], "r+b") as file:
        file.truncate(100)
    (config.output / f"{files[3]}.json").unlink()
    (config.output / "manifest.json").unlink()
    untouched = (config.output / files[1]).stat().st_mtime_ns
    assert build_dataset(config) == manifest
    assert (config.output / files[1]).stat().st_mtime_ns == untouched
    assert read_manifest(config.output, verify=True) == manifest


def test_bytes_do_not_depend_on_the_number_of_tasks(built, tmp_path):
    config, manifest = built
    other = build_dataset(config.model_copy(update={"num_cpus": 1, "output": tmp_path}))
    assert digests(other) == digests(manifest)


def test_another_configuration_is_refused(built):
    config, manifest = built
    with pytest.raises(BuildError, match=r"config\.seed: 3 there, 4 here"):
        build_dataset(config.model_copy(update={"seed": 4}))
    assert read_manifest(config.output, verify=True) == manifest


def test_inspection_counts_and_draws(built, tmp_path):
    config, _ = built
    found = inspect_dataset(config.output)
    assert found["counts"] == {"train": 40, "test": 40}
    assert found["splits"]["train"]["groups"] == 20
    page = write_contact_sheet(config.output, tmp_path / "sheet.html", rows=3).read_text()
    assert page.count("<img") == 3 * (1 + len(config.line_styles) + 2)
    assert "http" not in page


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight good pictures, one twice, and four that cannot be used."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    (folder / "sub").mkdir(parents=True)
    for number in range(8):
        image = cv2.resize(rng.integers(0, 255, (6, 6, 3), np.uint8), (90, 70 + number))
        cv2.imwrite(str(folder / "sub" / f"p{number}.{'png' if number % 2 else 'jpg'}"), image)
    (folder / "copy.png").write_bytes((folder / "sub" / "p1.png").read_bytes())
    transparent = np.full((64, 64, 4), 200, np.uint8)
    transparent[:, :32, 3] = 0
    transparent[16:48, 40:56, :3] = 20
    cv2.imwrite(str(folder / "alpha.png"), transparent)
    (folder / "cut.png").write_bytes((folder / "sub" / "p1.png").read_bytes()[:500])
    (folder / "text.jpg").write_text("hello")
    (folder / "empty.webp").touch()
    (folder / "notes.txt").write_text("not a picture")
    outside = tmp_path / "outside.png"
    outside.write_bytes((folder / "sub" / "p3.png").read_bytes())
    (folder / "link.png").symlink_to(outside)
    return folder


def test_folder_of_pictures_with_broken_ones(ray_session, pictures, tmp_path):
    config = characters_config(
        tmp_path / "out",
        source=PicturesSource(kind="folder", path=str(pictures), test_fraction=0.4),
        line_styles=("xdog", "pencil"),
        max_quarantined_fraction=0.3,
    )
    manifest = build_dataset(config)
    assert sum(manifest.counts.values()) == 10
    left_out = read_quarantine(config.output).to_pylist()
    assert {row["step"] for row in left_out} == {"check"}
    reasons = {row["file"]: row["reason"].split(":")[0] for row in left_out}
    assert manifest.quarantine == Counter(reasons.values())
    assert reasons == {
        "cut.png": "corrupt_image",
        "text.jpg": "unsupported_image",
        "empty.webp": "empty_image",
        "link.png": "link",
    }
    rows = {}
    for split in manifest.counts:
        reader = ShardReader(config.output, split)
        columns = ("sample_id", "group_id", "split", "mask", "image", "mismatched_ids")
        rows |= {row["sample_id"]: row for row in reader.read(range(len(reader)), columns)}
    copy, original = rows["copy.png"], rows["sub/p1.png"]
    assert copy["group_id"] == original["group_id"]
    assert copy["split"] == original["split"]
    for row in rows.values():
        for other in row["mismatched_ids"]:
            assert rows[other]["group_id"] != row["group_id"]
    mask = decode_pixels(rows["alpha.png"]["mask"])
    assert (mask[:, :30] == 0).all()
    assert (mask[:, 34:] == 255).all()
    assert (decode_pixels(rows["alpha.png"]["image"])[:, :30] == 255).all()
    assert (decode_pixels(original["mask"]) == 255).all()


def test_given_sketches_and_masks_are_used(ray_session, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(4):
        member = f"0001/{number}.png"
        pixels = cv2.resize(rng.integers(0, 255, (6, 6, 3), np.uint8), (64, 64))
        line = np.full((64, 64), 255, np.uint8)
        line[number] = 0
        mask = np.zeros((64, 64), np.uint8)
        mask[:, : 16 * number] = 255
        for part, image in (("color", pixels), ("sketch", line), ("mask", mask)):
            (tmp_path / "in" / part).mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(tmp_path / "in" / part / "0001.zip", "a") as archive:
                archive.writestr(member, cv2.imencode(".png", image)[1].tobytes())
    source = PicturesSource(kind="colorizediffusion", path=str(tmp_path / "in"), test_fraction=0)
    config = characters_config(tmp_path / "out", source=source, line_styles=("xdog",))
    manifest = build_dataset(config)
    assert manifest.sketch_styles == ("given", "xdog")
    reader = ShardReader(config.output, "train")
    for row in reader.read(range(4), ("sample_id", "sketches", "sketch_styles", "mask")):
        number = int(row["sample_id"][-5])
        assert row["sketch_styles"] == ["given", "xdog"]
        assert (decode_pixels(row["sketches"][0])[number] == 0).all()
        assert (decode_pixels(row["mask"]) == 255).sum() == 64 * 16 * number


def test_folders_without_two_pictures_are_refused(ray_session, pictures, tmp_path):
    for file in (*pictures.glob("sub/*"), pictures / "alpha.png"):
        file.unlink()
    config = characters_config(
        tmp_path / "out", source=PicturesSource(kind="folder", path=str(pictures))
    )
    with pytest.raises(ValueError, match=r"4 of 5 pictures .* more than max_quarantined_fraction"):
        build_dataset(config)
    config = config.model_copy(update={"max_quarantined_fraction": 1.0})
    with pytest.raises(ValueError, match="1 different usable pictures; at least 2"):
        build_dataset(config)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build_dataset(
            config.model_copy(update={"source": PicturesSource(kind="folder", path="nowhere")})
        )


def test_pictures_of_several_shapes_make_batches_of_one(ray_session, vae_folder, tmp_path):
    config = characters_config(
        tmp_path / "out",
        source=PicturesSource(
            kind="folder",
            path=str(mixed_shapes(tmp_path / "in")),
            test_fraction=0,
            tagger=TaggerConfig(path=TAGGER, general_threshold=0.1),
        ),
        aspect_ratios=MIXED_RATIOS,
        line_styles=("xdog",),
        vae=vae_folder,
    )
    manifest = build_dataset(config)
    shapes = {shard.bucket: shard.rows for shard in manifest.shards}
    assert shapes == {"32x96": 4, "64x64": 4, "96x32": 4}
    assert manifest.inputs.keys() == {"source", "vae", "tagger"}
    assert all(ShardReader(config.output, "train").column("tags"))
    read = ReadConfig(shards=config.output)
    loader = Loader(read, BackboneStage(steps=1), 1, 2, 2, 0, 0, 40, 40)
    seen = set()
    for batch in load_chunk({"id": np.arange(1)}, loader):
        height, width = batch["sketch"].shape[1:]
        seen.add(f"{height}x{width}")
        assert batch["latents"].shape == (2, 4, height // 8, width // 8)
        for name in ("foreground_mask", "reference_image", "mismatched_image"):
            assert batch[name].shape[1:3] == (height, width)
    assert seen == set(shapes)


def test_characters_have_one_shape(ray_session, tmp_path):
    with pytest.raises(ValueError, match=r"aspect_ratios: .* characters are square"):
        build_dataset(characters_config(tmp_path / "out", aspect_ratios=(1.0, 2.0)))
