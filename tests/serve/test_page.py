"""The page in a real browser against the real application: what an artist does with it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from nurie.inference.recipe import read_recipe
from nurie_serve.keys import add_key
from nurie_serve.preprocess import draw_lines, find_mask
from tests.serve.browser import (
    Studio,
    choose,
    drop_anywhere,
    ended,
    ended_jobs,
    field,
    jobs_of,
    run,
    saved,
    some_steps,
    visit,
)
from tests.serve.conftest import encode
from tests.serve.waiting import eventually


def steps_of(job: dict) -> int | None:
    return job["params"]["num_inference_steps"]


def test_a_sketch_is_coloured(page: Page, studio: Studio) -> None:
    button = page.get_by_role("button", name="Colour it")
    expect(button).to_be_disabled()
    choose(page)
    field(page, "Seed").fill("200")
    run(page)
    expect(page.locator("#announce")).to_have_text("The picture is ready.")
    expect(page.locator("#seed-used")).to_have_text("200")
    assert studio.last.line_overlay == 1.0, "the lines stay unless the artist says otherwise"
    assert studio.last.keep_size is True
    png = saved(page, "PNG")
    picture = Image.open(io.BytesIO(png))
    assert picture.size == (120, 90), "the sketch's own size"
    assert read_recipe(png).seed == 200
    assert saved(page, "PSD")[:4] == b"8BPS"
    assert b"openraster" in saved(page, "ORA")[:100]
    assert saved(page, "WEBP")[8:12] == b"WEBP"


def test_every_reference_with_every_seed(page: Page, studio: Studio) -> None:
    choose(page, "orange", "teal")
    field(page, "Seed").fill("50")
    page.get_by_label("Pictures for each reference").select_option("2")
    before = len(studio.handle.jobs)
    run(page)
    tiles = page.locator("#grid button")
    expect(tiles).to_have_count(4)
    expect(page.locator("#announce")).to_have_text("4 pictures are ready.")
    calls = studio.handle.jobs[before:]
    made = sorted(
        (seed, reference.getpixel((0, 0)))
        for call in calls
        for seed, reference in zip(call.seed, call.reference, strict=True)
    )
    assert [seed for seed, _ in made] == [50, 50, 51, 51]
    assert len({colour for _, colour in made}) == 2
    tiles.nth(3).click()
    expect(page.locator("#seed-used")).to_have_text("51")
    page.get_by_role("button", name="All", exact=True).click()
    expect(tiles.first).to_be_visible()
    expect(page.locator("#history-strip button")).to_have_count(4)


def test_a_bad_reference_fails_alone(browser: Browser, studio: Studio) -> None:
    with visit(browser, studio.address, expected="415") as page:
        choose(page, "orange")
        bad = {"name": "bad.png", "mimeType": "image/png", "buffer": b"no picture"}
        page.set_input_files("#reference", bad)
        expect(page.locator("[data-input=reference] li")).to_have_count(2)
        run(page)
        expect(page.locator("#reference-error")).to_contain_text("not a PNG")
        expect(page.locator("#history-strip button")).to_have_count(1)


def test_the_brush_paints_the_mask(page: Page, studio: Studio) -> None:
    choose(page)
    page.get_by_text("Background and mask").click()
    page.get_by_role("button", name="Paint the mask").click()
    canvas = page.locator("#brush-canvas")
    box = canvas.bounding_box()
    assert box
    left, middle = box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2
    page.mouse.move(left, middle)
    page.mouse.down()
    page.mouse.move(left, box["y"] + box["height"] * 0.9, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Undo").click()
    canvas.press("ArrowRight")
    for _ in range(12):
        canvas.press("Shift+ArrowRight")
    page.get_by_text("Erase").click()
    canvas.press(" ")
    page.get_by_role("button", name="Use this mask").click()
    run(page)
    (sent,) = studio.last.foreground_mask
    mask = np.asarray(sent)
    assert mask.shape == (90, 120)
    assert mask[60, 30] == 255, "painted with the pointer, and brought back by Undo"
    assert mask[45, 66] == 255, "painted with the keyboard"
    assert mask[45, 91] == 0, "erased again"
    assert mask[5, 5] == 0
    page.get_by_role("button", name="Take out mask.png").click()
    run(page)
    assert studio.last.foreground_mask is None, "without one the server finds it"


def test_the_server_finds_mask_and_lines(page: Page, studio: Studio) -> None:
    painting = Image.new("RGB", (64, 48), "orange")
    painting.paste("teal", (16, 12, 48, 36))
    choose(page, sketch=encode(painting))
    page.get_by_role("button", name="Draw the sketch as lines").click()
    expect(page.locator("[data-input=sketch] img[alt='line.png']")).to_be_visible()
    page.get_by_text("Background and mask").click()
    page.get_by_role("button", name="Find the mask").click()
    expect(page.locator("[data-input=mask] img[alt='mask.png']")).to_be_visible()
    run(page)
    (sketch,), (mask,) = studio.last.sketch, studio.last.foreground_mask
    lines = draw_lines(painting)
    assert np.array_equal(sketch.convert("L"), Image.open(io.BytesIO(lines)))
    assert np.array_equal(mask, Image.open(io.BytesIO(find_mask(Image.open(io.BytesIO(lines))))))
    assert [mask.getpixel(place) for place in ((32, 24), (3, 3))] == [255, 0]


def test_progress_preview_and_cancel(page: Page, studio: Studio) -> None:
    choose(page)
    field(page, "Inference steps").fill("8")
    with some_steps(studio, 3):
        page.keyboard.press("Control+Enter")
        expect(page.locator("#working-text")).to_have_text(re.compile("Step [1-3] of 8"))
        expect(page.get_by_role("progressbar", name="Progress")).to_have_js_property("max", 8)
        expect(page.locator("#after")).to_have_attribute("src", re.compile("^data:image/jpeg"))
        (seed,) = studio.last.seed
        page.keyboard.press("Escape")
        expect(page.locator("#announce")).to_have_text("Cancelled.")
        expect(page.locator("#empty")).to_be_visible()
        assert ended_jobs(page)[0]["params"]["seed"] == seed
        assert ended_jobs(page)[0]["status"] == "cancelled"


def test_the_place_in_the_queue(page: Page, studio: Studio) -> None:
    choose(page, "orange", "teal")
    with some_steps(studio, 0):
        field(page, "Inference steps").fill("2")
        page.get_by_label("Pictures for each reference").select_option("4")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#grid .state").filter(has_text="place 1")).to_have_count(1)
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#empty")).to_be_visible()
        eventually(lambda: "queued" not in {job["status"] for job in jobs_of(page)})
    jobs = [job for job in ended_jobs(page) if steps_of(job) == 2]
    assert {job["status"] for job in jobs} == {"cancelled"}, "the server's, too"


def test_settings_come_back_from_a_dropped_result(page: Page, studio: Studio) -> None:
    choose(page)
    field(page, "Seed").fill("77")
    field(page, "Inference steps").fill("3")
    run(page)
    png = saved(page, "PNG")
    page.get_by_role("button", name="All settings as at first").click()
    expect(field(page, "Seed")).to_have_value("")
    drop_anywhere(page, "result.png", png)
    expect(page.locator("#notice")).to_contain_text("seed 77")
    expect(field(page, "Seed")).to_have_value("77")
    expect(field(page, "Inference steps")).to_have_value("3")
    page.get_by_role("button", name="All settings as at first").click()
    page.set_input_files("#sketch", {"name": "r.png", "mimeType": "image/png", "buffer": png})
    page.get_by_role("button", name="Use them").click()
    expect(field(page, "Seed")).to_have_value("77")


def test_history_survives_a_reload(page: Page, studio: Studio) -> None:
    choose(page, "teal")
    field(page, "Inference steps").fill("4")
    run(page)
    seed = page.locator("#seed-used").inner_text()
    run(page, "4 variations")
    with some_steps(studio, 1):
        page.keyboard.press("Control+Enter")
        expect(page.locator("#working-text")).to_contain_text("Step 1 of 4")
        page.reload()
        expect(page.locator("#working-text")).to_contain_text("Step 1 of 4")
    ended(page)
    thumbs = page.locator("#history-strip button")
    expect(thumbs).to_have_count(6)
    thumbs.last.click()
    expect(page.locator("#seed-used")).to_have_text(seed)
    page.get_by_role("button", name="Take out s.png").click()
    page.get_by_role("button", name="Use its settings").click()
    expect(field(page, "Seed")).to_have_value(seed)
    expect(field(page, "Inference steps")).to_have_value("4")
    expect(page.get_by_role("img", name="s.png")).to_be_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete all").click()
    expect(page.locator("#empty")).to_be_visible()
    eventually(lambda: not [job for job in ended_jobs(page) if steps_of(job) == 4])
    page.reload()
    expect(page.locator("#empty")).to_be_visible()


def test_seeds_are_kept_and_varied(page: Page, studio: Studio) -> None:
    choose(page)
    run(page)
    seed = page.locator("#seed-used").inner_text()
    page.keyboard.press("r")
    run(page)
    assert studio.last.seed == [int(seed)]
    before = len(studio.handle.jobs)
    run(page, "4 variations")
    seeds = [each for call in studio.handle.jobs[before:] for each in call.seed]
    assert len(set(seeds)) == 4
    assert int(seed) not in seeds


def test_a_bad_value_is_shown_at_its_control(browser: Browser, studio: Studio) -> None:
    with visit(browser, studio.address, expected="422") as page:
        choose(page)
        page.get_by_text("Advanced").click()
        field(page, "Sketch strength").fill("9")
        page.get_by_text("Advanced").click()
        page.keyboard.press("Control+Enter")
        wrong = field(page, "Sketch strength")
        expect(wrong).to_be_focused()
        expect(wrong).to_have_attribute("aria-invalid", "true")
        expect(page.locator(".control.wrong .error")).to_contain_text("number from 0 to 2")
        expect(page.locator("#empty")).to_be_visible()
        wrong.fill("1")
        run(page)
        expect(page.locator(".control.wrong")).to_have_count(0)


def test_a_server_that_went_away_comes_back(browser: Browser, tmp_path: Path) -> None:
    studio = Studio(tmp_path / "jobs")
    studio.start()
    try:
        with visit(browser, studio.address, expected="Failed to load resource") as page:
            choose(page)
            run(page)
            with some_steps(studio, 1):
                field(page, "Inference steps").fill("3")
                page.keyboard.press("Control+Enter")
                expect(page.locator("#working-text")).to_contain_text("Step 1 of 3")
                studio.stop()
                expect(page.locator("#status")).to_have_text("no connection, trying again")
                page.locator("#history-strip button").click()
                assert saved(page, "PNG"), "what was made is still here"
                studio.start()
            ended(page)
            expect(page.locator("#history-strip button")).to_have_count(2)
            expect(page.locator("#status")).to_have_text("ready")
    finally:
        studio.close()


def test_a_key_is_asked_for(browser: Browser, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    key = add_key(keys, "artist")
    studio = Studio(tmp_path / "jobs", keys)
    studio.start()
    try:
        with visit(browser, studio.address, expected="401") as page:
            asked = page.get_by_label("API key")
            expect(asked).to_be_focused()
            asked.fill("nurie_wrong")
            page.get_by_role("button", name="Continue").click()
            expect(page.locator("#key-error")).to_have_text("There is no such key")
            asked.fill(key)
            page.keyboard.press("Enter")
            expect(asked).to_be_hidden()
            choose(page)
            run(page)
            page.reload()
            expect(page.locator("#history-strip button")).to_have_count(1)
            expect(page.locator("#control-seed")).to_be_visible()
            kept = page.evaluate("[sessionStorage, localStorage].map((s) => s['nurie.key'])")
            assert kept == [key, None], "with the tab, unless it shall be remembered"
            page.get_by_role("button", name="Other key").click()
            page.get_by_label("Remember it").check()
            page.get_by_label("API key").fill(key)
            page.keyboard.press("Enter")
            expect(page.locator("#control-seed")).to_be_visible()
            kept = page.evaluate("[sessionStorage, localStorage].map((s) => s['nurie.key'])")
            assert kept == [None, key]
    finally:
        studio.close()
