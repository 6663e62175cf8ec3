"""Lines and masks of pictures: over HTTP, and what is found."""

from __future__ import annotations

import io

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw

from nurie.inference.foreground import find_figure, grey_sketch, sketch_foreground
from tests.serve.conftest import PNG, encode, line_drawing
from tests.serve.test_bad_inputs import SKETCHES, check_problem

PATH = "/v1/preprocess"


def ask(client: TestClient, data: bytes, kind: str) -> np.ndarray:
    response = client.post(PATH, files={"image": data}, data={"kind": kind})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(response.content))
    assert image.mode == "L"
    return np.asarray(image)


def two_colours() -> Image.Image:
    picture = Image.new("RGB", (96, 64), "orange")
    picture.paste("navy", (48, 0, 96, 64))
    return picture


def cut_out(mode: str = "ellipse", **drawn: object) -> Image.Image:
    picture = Image.new("RGBA", (96, 96), (0, 0, 0, 0))
    getattr(ImageDraw.Draw(picture), mode)((16, 16, 80, 80), **drawn)
    return picture


def test_lines_are_where_colours_meet(client: TestClient) -> None:
    lines = ask(client, encode(two_colours()), "line")
    assert lines.shape == (64, 96)
    assert lines[:, 46:50].min(axis=1).max() < 128, "a line all the way down"
    assert (lines[:, :40] == 255).all() and (lines[:, 56:] == 255).all()
    assert (ask(client, encode(two_colours()), "line") == lines).all()


def test_mask_is_the_one_a_sketch_gets(client: TestClient) -> None:
    mask = ask(client, PNG, "mask")
    assert (mask == np.asarray(sketch_foreground(grey_sketch(line_drawing())))).all()
    assert (mask[32, 32], mask[2, 2]) == (255, 0)


def test_mask_of_a_cut_out_is_its_alpha(client: TestClient) -> None:
    picture = cut_out(fill="yellow")
    alpha = np.asarray(picture.getchannel("A"))
    assert (ask(client, encode(picture), "mask") == alpha).all()


def test_lines_on_transparent_paper_are_no_cut_out() -> None:
    mask = np.asarray(find_figure(cut_out(outline="black", width=2)))
    assert (mask[48, 48], mask[4, 4]) == (255, 0)


@pytest.mark.parametrize("alpha", [0, 255])
def test_alpha_that_says_nothing(alpha: int) -> None:
    picture = Image.new("RGBA", (64, 64), (90, 10, 10, alpha))
    assert np.asarray(find_figure(picture)).min() == 255


def test_upload_in_the_place_of_a_file(client: TestClient) -> None:
    upload = client.post("/v1/uploads", files={"image": PNG}).json()["upload_id"]
    parts = {"image": (None, upload), "kind": (None, "mask")}
    response = client.post(PATH, files=parts)
    assert (np.asarray(Image.open(io.BytesIO(response.content))) == ask(client, PNG, "mask")).all()
    parts["image"] = (None, "upl_" + "0" * 34)
    check_problem(client.post(PATH, files=parts), 404, "not_found")


@pytest.mark.parametrize("name", SKETCHES)
def test_bad_pictures(client: TestClient, name: str) -> None:
    data, status, code = SKETCHES[name]
    response = client.post(PATH, files={"image": data}, data={"kind": "line"})
    check_problem(response, status, code, "image")


@pytest.mark.parametrize(
    ("parts", "field", "code"),
    [
        ([("image", (None, "http://169.254.169.254/"))], "image", "urls_not_allowed"),
        ([("image", (None, "text"))], "image", "not_a_file"),
        ([("image", PNG), ("image", PNG)], "image", "duplicate_field"),
        ([("picture", PNG)], "picture", "unknown_field"),
        ([("kind", (None, "line"))], "kind", "missing_field"),
    ],
)
def test_bad_forms(client: TestClient, parts: list, field: str, code: str) -> None:
    response = client.post(PATH, files=[*parts, ("kind", (None, "line"))])
    check_problem(response, 422, code, field)


def test_bad_kinds(client: TestClient) -> None:
    files = {"image": PNG}
    check_problem(client.post(PATH, files=files), 422, "missing_field", "kind")
    response = client.post(PATH, files=files, data={"kind": "depth"})
    assert "one of line, mask" in check_problem(response, 422, "out_of_range", "kind")["detail"]
    response = client.post(PATH, files={"other": PNG}, data={"kind": "line"})
    check_problem(response, 422, "unknown_field", "other")
    response = client.post(PATH, files={"kind": (None, "line")})
    check_problem(response, 422, "missing_field", "image")
