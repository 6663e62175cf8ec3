"""Sheets show every picture in its place; reports average and compare what was measured."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from nurie.evaluation.page import Case, Gallery, render
from nurie.evaluation.report import (
    SWAP_METRICS,
    Measured,
    Table,
    compare,
    comparisons_table,
    describe,
    markdown,
    summarize,
    tables,
)
from nurie.evaluation.sheet import grid
from nurie.evaluation.statistics import bootstrap

RED, BLUE, GREEN = (250, 10, 10), (10, 10, 250), (10, 250, 10)


def picture(colour: tuple[int, int, int], width: int = 128, height: int = 128) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def boxes(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of all pixels of a colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(axis=-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_pictures_keep_their_pixels_and_places() -> None:
    sheet = grid([[picture(RED), picture(BLUE)], [picture(GREEN), picture(BLUE)]], ["a", "b"])
    red, green = boxes(sheet, RED), boxes(sheet, GREEN)
    assert (red[2] - red[0], red[3] - red[1]) == (128, 128)
    assert green[0] == red[0]
    assert green[1] >= red[3]
    assert boxes(sheet, BLUE)[0] >= red[2]
    assert red[1] >= 13  # Headers have room above.


def test_headers_are_written_above_their_column_and_cut() -> None:
    rows = [[picture(RED), picture(BLUE)]]
    plain = np.asarray(grid(rows, [" ", " "]))
    long = np.asarray(grid(rows, ["", "a header much longer than its picture is wide"]))
    changed = np.nonzero((plain != long).any(axis=(0, 2)))[0]
    blue = boxes(Image.fromarray(plain), BLUE)
    assert changed.min() >= blue[0] - 1
    assert changed.max() <= blue[2]


def test_small_grey_and_odd_pictures_fit() -> None:
    grey = Image.new("L", (16, 16), 200)
    wide = picture(RED, 64, 16)
    sheet = grid([[grey, wide]], ["sketch", "wide"])
    red = boxes(sheet, RED)
    assert (red[2] - red[0]) == 4 * (red[3] - red[1]) == 96
    assert sheet.mode == "RGB"


def test_uneven_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="row 1 has 1 pictures for 2 headers"):
        grid([[picture(RED), picture(RED)], [picture(RED)]], ["a", "b"])
    with pytest.raises(ValueError, match="at least one"):
        grid([], ["a"])


def test_bootstrap_interval_covers_the_mean() -> None:
    values = np.random.default_rng(1).normal(20, 2, 400)
    interval = bootstrap(list(values))
    half = 1.96 * values.std() / 20
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05)
    assert bootstrap([3.0]) == (3.0, 3.0, 3.0, 1)
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


@pytest.fixture
def measured() -> list[Measured]:
    def one(sample: str, protocol: str, psnr: float, hair: float) -> Measured:
        return Measured(sample, protocol, {"psnr": psnr, "lab_error/hair": hair})

    return [
        one("a", "wrong", 10, 40),
        one("a", "own", 20, 10),
        one("b", "wrong", 12, 60),
        one("b", "own", 26, 10),
        Measured("c", "own", {"psnr": 23}),
    ]


def test_report_compares_right_with_wrong(measured: list[Measured]) -> None:
    summary = summarize(measured)
    assert list(summary) == ["model"]
    assert list(summary["model"]) == ["own", "wrong"]
    assert summary["model"]["own"]["psnr"].mean == pytest.approx(23)
    assert summary["model"]["own"]["psnr"].n == 3
    assert summary["model"]["own"]["lab_error/hair"].n == 2
    assert compare(summary["model"]) == {
        "own_minus_wrong/psnr": pytest.approx(12),
        "own_over_wrong/lab_error/hair": pytest.approx(0.2),
    }
    assert compare(summarize(measured[4:])["model"]) == {}


def test_tables_show_what_there_is(measured: list[Measured]) -> None:
    summary = summarize(measured)
    (plain,) = tables(summary, intervals=False)
    assert [list(plain.header), *plain.rows] == [
        ["", "own, n=3", "wrong, n=2", "better"],
        ["PSNR, dB", "23.0", "11.0", "higher"],
        ["delta E, hair", "10.0", "50.0", "lower"],
    ]
    report = {
        "model": "models:/nurie@champion",
        "model_digest": "0123456789abcdef",
        "shards": "data/x",
        "shards_digest": "fedcba9876543210",
        "num_samples": 3,
        "num_inference_steps": 20,
        "guidance_scale": None,
        "seed": 0,
    }
    found = [*tables(summary), comparisons_table(compare(summary["model"]))]
    skipped = {"same_palette": "3 of 3 samples have no such reference"}
    page = markdown("Evaluation", describe(report), found, skipped)
    assert page.startswith("# Evaluation\n\nModel `models:/nurie@champion` (manifest 0123456789ab)")
    assert "20 steps, guidance the model's own, seed 0" in page
    assert "| PSNR, dB | 23.0 (20.0 to 26.0) | 11.0 (10.0 to 12.0) | higher |" in page
    assert "| PSNR, dB: own minus wrong | 12.0 |" in page
    assert "Left out of `same_palette`: 3 of 3 samples have no such reference." in page


def test_systems_stand_side_by_side(measured: list[Measured]) -> None:
    peers = [Measured(m.sample_id, m.protocol, {"psnr": 1.0}, "mean_colour") for m in measured]
    swaps = dict.fromkeys(SWAP_METRICS, 0.5) | {"entanglement/noise": 0.25}
    both = [Measured("a", "swaps", swaps, system) for system in ("model", "mean_colour")]
    found = {table.title: table for table in tables(summarize([*peers, *measured, *both]))}
    assert list(found) == [
        "By reference",
        "All systems, reference `own`",
        "All systems, reference `wrong`",
        "Disentanglement, n=1 sketches",
        "Entanglement by type of reference",
    ]
    own = found["All systems, reference `own`"]
    assert list(own.header) == ["", "model", "mean_colour", "better"]
    assert own.rows[0] == ["PSNR, dB", "23.0 (20.0 to 26.0)", "1.00 (1.00 to 1.00)", "higher"]
    assert own.rows[1][2] == "-"
    kinds = found["Entanglement by type of reference"].rows
    assert kinds == [["noise", "0.250 (0.250 to 0.250)", "0.250 (0.250 to 0.250)"]]


def test_the_page_carries_its_pictures_and_escapes_text() -> None:
    table = Table("`x` <b>", ["", "a"], [["row", "1.5 (1 to 2)"]], "note")
    square = np.full((300, 300, 3), RED, np.uint8)
    gallery = Gallery(
        "Cases",
        "text",
        [Case("<i>", {"result": square, "sketch": square[..., 0], "pair": [square] * 2})],
    )
    page = render("Title & more", "head", [table], [gallery, Gallery("none", "", [])], {"k": "v"})
    assert "<code>x</code> &lt;b&gt;" in page
    # Every link of the contents has its heading.
    anchors = re.findall(r'<a href="#([^"]+)">', page)
    assert anchors == re.findall(r'<h2 id="([^"]+)">', page) == ["x-b", "cases"]
    assert "<td>1.5 <small>(1 to 2)</small></td>" in page
    assert "Title &amp; more" in page
    assert "&lt;i&gt;" in page
    assert "none" not in page
    data = re.findall(r"data:image/webp;base64,([^\"]+)", page)
    assert len(data) == 4  # Two of them stand above each other.
    shown = Image.open(io.BytesIO(base64.b64decode(data[0])))
    assert shown.size == (256, 256)
