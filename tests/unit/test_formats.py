"""Results as files: layers that compose to the picture, settings that come back, nothing leaked."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from psd_tools import PSDImage

from nurie.inference.formats import FORMATS, FormatError, convert, encode, find_format, format_of
from nurie.inference.images import decode_image
from nurie.inference.layers import Layer, LayeredPicture
from nurie.inference.recipe import Recipe, RecipeError, read_recipe

RECIPE = Recipe.of(
    "nano sha256:abcdef",
    5,
    {"seed": None, "height": None, "guidance_scale": 2.5, "keep_size": True, "scheduler": "euler"},
)


def picture(seed: int = 0, line_overlay: float = 0.6, size: tuple[int, int] = (40, 24)):
    rng = np.random.default_rng(seed)
    width, height = size
    colours = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    lines, mask = rng.integers(0, 256, (2, height, width), dtype=np.uint8)
    mask[: height // 2] = rng.choice([0, 255], (height // 2, width))
    images = (Image.fromarray(array) for array in (colours, lines, mask))
    return LayeredPicture(*images, line_overlay)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.int16)


def compose(layers: tuple[Layer, ...]) -> np.ndarray:
    """W3C Compositing and Blending Level 1 onto white, in exact numbers."""
    first = np.asarray(layers[0].image)
    below, below_alpha = np.ones((*first.shape[:2], 3)), np.zeros((*first.shape[:2], 1))
    for layer in reversed(layers):
        if not layer.visible:
            continue
        rgba = np.asarray(layer.image.convert("RGBA"), dtype=np.float64) / 255
        source, alpha = rgba[..., :3], rgba[..., 3:] * layer.opacity
        if layer.blend == "multiply":
            source = (1 - below_alpha) * source + below_alpha * source * below
        union = alpha + below_alpha * (1 - alpha)
        mixed = alpha * source + (1 - alpha) * below_alpha * below
        below = np.divide(mixed, union, out=np.zeros_like(mixed), where=union > 0)
        below_alpha = union
    assert np.allclose(below_alpha, 1)
    return np.rint(below * 255)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 1))
def test_layers_compose_to_the_flat_picture(seed: int, line_overlay: float) -> None:
    made = picture(seed, line_overlay)
    assert np.abs(compose(made.layers()) - pixels(made.flatten())).max() <= 1


def test_lines_that_are_not_laid_over_are_there_and_off() -> None:
    made = picture(line_overlay=0.0)
    (line,) = (layer for layer in made.layers() if layer.name == "line")
    assert (line.blend, line.opacity, line.visible) == ("multiply", 1.0, False)
    assert np.array_equal(pixels(made.flatten()), pixels(made.colours))


@pytest.mark.parametrize("line_overlay", [0.0, 0.3, 1.0])
def test_psd(line_overlay: float) -> None:
    made = picture(line_overlay=line_overlay)
    data = encode(made, find_format("psd"), RECIPE)
    flat = pixels(made.flatten())
    document = PSDImage.open(io.BytesIO(data))
    found = [(layer.name, layer.blend_mode.name, layer.visible) for layer in reversed(document)]
    shown = line_overlay > 0
    assert found == [
        ("mask", "NORMAL", False),
        ("line", "MULTIPLY", shown),
        ("colour", "NORMAL", True),
        ("background", "NORMAL", True),
    ]
    composed = document.composite(ignore_preview=True)
    assert composed is not None
    assert np.abs(pixels(composed) - flat).max() <= 1
    # What programs show that do not compose layers: read by another library.
    assert np.abs(pixels(Image.open(io.BytesIO(data))) - flat).max() <= 1
    # Behind its mask the figure's layer holds the whole picture.
    assert np.array_equal(pixels(document[1].topil().convert("RGB")), pixels(made.colours))
    assert np.array_equal(np.asarray(document[1].mask.topil()), np.asarray(made.mask))


def test_openraster() -> None:
    made = picture()
    data = encode(made, find_format("ora"), RECIPE)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        # Programs know the format by the file's first bytes.
        assert data[30:54] == b"mimetypeimage/openraster"
        assert archive.infolist()[0].compress_type == zipfile.ZIP_STORED
        stack = ElementTree.fromstring(archive.read("stack.xml"))
        images = {
            name: Image.open(archive.open(name))
            for name in archive.namelist()
            if name.endswith("png")
        }
        assert (stack.get("w"), stack.get("h")) == ("40", "24")
        layers = tuple(
            Layer(
                layer.attrib["name"],
                images[layer.attrib["src"]].copy(),
                "multiply" if layer.get("composite-op") == "svg:multiply" else "normal",
                float(layer.attrib["opacity"]),
                layer.get("visibility") == "visible",
            )
            for layer in stack.iter("layer")
        )
        assert [layer.name for layer in layers] == ["mask", "line", "colour", "background"]
        assert np.abs(compose(layers) - pixels(made.flatten())).max() <= 1
        assert np.array_equal(pixels(images["mergedimage.png"]), pixels(made.flatten()))
        assert max(images["Thumbnails/thumbnail.png"].size) <= 256


@pytest.mark.parametrize("name", ["png", "webp"])
def test_flat_files_without_loss(name: str) -> None:
    data = encode(picture(), find_format(name), RECIPE)
    assert np.array_equal(pixels(Image.open(io.BytesIO(data))), pixels(picture().flatten()))


def test_jpeg_is_close() -> None:
    smooth = Image.linear_gradient("L").resize((64, 64))
    made = LayeredPicture(smooth.convert("RGB"), smooth, smooth, 0.0)
    found = Image.open(io.BytesIO(encode(made, find_format("jpg"), None)))
    assert found.format == "JPEG"
    assert np.abs(pixels(found) - pixels(made.flatten())).max() <= 4


@pytest.mark.parametrize("name", FORMATS)
def test_settings_come_back(name: str) -> None:
    data = encode(picture(), FORMATS[name], RECIPE)
    assert read_recipe(data) == RECIPE
    assert type(read_recipe(data).controls["keep_size"]) is bool
    assert encode(picture(), FORMATS[name], RECIPE) == data


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("metadata", [True, False])
def test_every_file_is_made_of_the_openraster_file(name: str, metadata: bool) -> None:
    made = picture(line_overlay=1 / 3)
    kept = encode(made, find_format("ora"), RECIPE)
    direct = encode(made, FORMATS[name], RECIPE if metadata else None)
    assert convert(kept, FORMATS[name], metadata) == direct


@pytest.mark.parametrize("name", FORMATS)
def test_metadata_can_be_left_out(name: str) -> None:
    data = encode(picture(), FORMATS[name], None)
    assert not any(word in data for word in (b"nurie", b"xpacket", b"Exif"))
    with pytest.raises(RecipeError, match="holds no settings"):
        read_recipe(data)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_of_the_inputs_metadata_is_in_a_result(name: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "SECRET"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSMapDatum] = "SECRET"
    buffer = io.BytesIO()
    plain = picture(size=(32, 32))
    plain.colours.save(buffer, "JPEG", exif=exif, comment=b"SECRET", xmp=b"SECRET")
    assert buffer.getvalue().count(b"SECRET") == 4
    read = decode_image(buffer.getvalue(), "sketch")
    result = LayeredPicture(read, plain.lines, plain.mask, 0.5)
    data = encode(result, FORMATS[name], RECIPE)
    assert b"SECRET" not in data
    if name != "psd":
        found = Image.open(io.BytesIO(zip_member(data) if name == "ora" else data))
        assert not found.getexif()


def zip_member(data: bytes) -> bytes:
    return zipfile.ZipFile(io.BytesIO(data)).read("mergedimage.png")


def packet(recipe: str) -> bytes:
    return b"<?xpacket begin=''?>" + f"nurie:recipe='{recipe}'".replace("'", '"').encode() + END


END = b"<?xpacket end='w'?>"
GOOD = RECIPE.model_dump()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no settings"),
        (b"<?xpacket begin=", "holds no settings"),
        (b"<?xpacket begin=" + b"x" * 100_000 + END, "holds no settings"),
        (packet("{"), "not what nurie writes"),
        (packet("[" * 50_000), "not what nurie writes"),
        (packet("&quot;x&quot;"), "not what nurie writes"),
        (packet(json.dumps(GOOD | {"more": 1}).replace('"', "&quot;")), "not what nurie writes"),
        (
            packet(json.dumps(GOOD | {"controls": {"blur": 1}}).replace('"', "&quot;")),
            "blur: unknown control",
        ),
        (
            packet(json.dumps(GOOD | {"seed": -1}).replace('"', "&quot;")),
            "seed: -1 is not a whole number",
        ),
    ],
)
def test_settings_that_cannot_be_used(data: bytes, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe(data)


def test_settings_that_another_program_wrote_again_as_an_element() -> None:
    text = RECIPE.model_dump_json().replace('"', "&quot;")
    data = b"<?xpacket begin=''?><nurie:recipe>" + text.encode() + b"</nurie:recipe>" + END
    assert read_recipe(data) == RECIPE


def test_formats_are_named() -> None:
    assert format_of(Path("a/b.JPG")).name == "jpeg"
    with pytest.raises(FormatError, match=r"a\.gif: the name must end in one of \.png, "):
        format_of(Path("a.gif"))
    with pytest.raises(FormatError, match="'tiff' is no format of results"):
        find_format("tiff")
    with pytest.raises(FormatError, match="16383 pixels"):
        encode(picture(size=(16_384, 1)), find_format("webp"), None)
