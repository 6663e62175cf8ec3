"""The page for everybody: keyboard, screen readers, small screens, English and Japanese."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from nurie.inference.controls import CONTROLS
from nurie_serve.routes.information import WEB
from tests.serve.browser import Studio, choose, ended, field, run, unnamed_controls, visit

DICTIONARIES = """async () => {
  const languages = [await import("/web/en.js"), await import("/web/ja.js")];
  return languages.map((each) => Object.keys(each.default));
}"""
FOCUS = """() => {
  const { activeElement: at } = document;
  const box = (at.closest(".drop") ?? at.labels?.[0] ?? at).getBoundingClientRect();
  const seen = box.width > 0 && box.height > 0;
  return [at.tagName + "#" + at.id, seen || at.matches(".visually-hidden")];
}"""
SERVERS_OWN = re.compile(r"(control|group|help)\.|problem\.")


def test_by_keyboard_alone(page: Page, studio: Studio) -> None:
    page.locator("#examples-strip button").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#run")).to_be_focused()
    page.keyboard.press("Control+Enter")
    ended(page)
    split = page.get_by_role("slider", name="Show the sketch over the result")
    split.focus()
    page.keyboard.press("End")
    expect(split).to_have_attribute("aria-valuetext", "sketch on 100 percent")
    page.keyboard.press("x")
    expect(split).to_have_value("0")
    page.keyboard.press("+")
    expect(page.get_by_role("button", name="Whole picture")).to_have_text("140 %")
    before = place(page)
    page.keyboard.press("Shift+ArrowDown")
    assert place(page)[1] < before[1]
    page.keyboard.press("0")
    expect(page.get_by_role("button", name="Whole picture")).to_have_text("100 %")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()
    field(page, "Seed").press("+")
    expect(page.get_by_role("button", name="Whole picture")).to_have_text("100 %")


def place(page: Page) -> tuple[float, float]:
    """Left and top of the picture."""
    box = page.locator("#sheet").bounding_box()
    assert box
    return box["x"], box["y"]


def test_the_focus_goes_through_everything_and_is_seen(page: Page) -> None:
    choose(page)
    run(page)
    page.locator("h1").click()
    visited: list[str] = []
    for _ in range(80):
        page.keyboard.press("Tab")
        name, seen = page.evaluate(FOCUS)
        if name == "BODY#":
            break
        assert seen, name
        visited.append(name)
    assert name == "BODY#", "the focus was caught"
    order = ["sketch", "reference", "run", "count", "control-seed", "restore", "split", "zoom-in"]
    found = [name.partition("#")[2] for name in visited]
    assert [each for each in found if each in order] == order


def test_zoom_and_divider_by_pointer(page: Page) -> None:
    choose(page)
    run(page)
    box = page.locator("#view").bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.up()
    assert 45 < float(page.locator("#split").input_value()) < 55
    page.mouse.wheel(0, -600)
    expect(page.locator("#view")).to_have_class("view zoomed")
    left, _ = place(page)
    page.mouse.move(x + 100, y)
    page.mouse.down()
    page.mouse.move(x + 160, y, steps=3)
    page.mouse.up()
    assert place(page)[0] == pytest.approx(left + 60, abs=1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_small_screens(browser: Browser, studio: Studio, scheme: str) -> None:
    size = {"width": 375, "height": 740}
    with visit(browser, studio.address, viewport=size, color_scheme=scheme) as page:
        expect(page.locator("#examples-strip button")).to_have_count(6)
        choose(page, "orange", "teal")
        page.get_by_text("Background and mask").click()
        page.get_by_text("Advanced").click()
        assert too_wide(page) == []
        run(page)
        assert too_wide(page) == []
        page.locator("#grid button").first.click()
        assert too_wide(page) == []
        page.get_by_role("button", name="Paint the mask").click()
        assert too_wide(page) == []


def too_wide(page: Page) -> list[str]:
    """What makes the page scroll sideways."""
    wide, shown = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    return [] if wide <= shown else [f"{wide} > {shown}"]


def test_everything_has_a_name(page: Page, studio: Studio) -> None:
    expect(page.locator("#examples-strip button")).to_have_count(6)
    choose(page, "orange", "teal")
    page.get_by_text("Background and mask").click()
    page.get_by_text("Advanced").click()
    run(page)
    assert unnamed_controls(page) == []
    for name in ("status", "announce", "notice"):
        expect(page.locator(f"#{name}")).to_have_attribute("role", "status")
    described = page.get_by_role("spinbutton", name="Seed", exact=True)
    expect(described).to_have_accessible_description(re.compile("^Same seed, same picture"))


def test_japanese(browser: Browser, studio: Studio) -> None:
    with visit(browser, studio.address, locale="ja-JP") as page:
        expect(page.get_by_role("button", name="色を塗る")).to_be_visible()
        expect(page.locator("html")).to_have_attribute("lang", "ja")
        page.get_by_text("詳細設定").click()
        page.get_by_text("背景とマスク").click()
        choose(page)
        run(page, "色を塗る")
        expect(page.locator("#announce")).to_have_text("絵が完成しました。")
        said = page.locator("main").inner_text()
        left = re.findall(r"[A-Za-z]{3,}", said)
        known = {"Ctrl", "Enter", "PNG", "WEBP", "JPEG", "PSD", "ORA", "Karras", "default"}
        known |= {choice for control in CONTROLS for choice in control.choices or ()}
        assert [word for word in left if not any(word in each for each in known)] == []
        assert unnamed_controls(page) == []
        page.get_by_label("Language").select_option("en")
        expect(page.get_by_role("button", name="Colour it")).to_be_visible()
        expect(page.locator("label[for=control-seed]")).to_have_text("Seed")
        page.reload()
        expect(page.get_by_role("button", name="Colour it")).to_be_visible()


def test_the_languages_say_the_same(page: Page) -> None:
    english, japanese = (set(keys) for keys in page.evaluate(DICTIONARIES))
    assert english <= japanese
    assert all(SERVERS_OWN.match(key) for key in japanese - english)
    for control in CONTROLS:
        assert {f"control.{control.name}", f"help.{control.name}"} <= japanese
        assert control.group == "basic" or f"group.{control.group}" in japanese
    controls = {f"{kind}.{each.name}" for each in CONTROLS for kind in ("control", "help")}
    assert {k for k in japanese - english if k.startswith(("control.", "help."))} == controls
    code = "".join(file.read_text() for file in WEB.glob("*.js")) + (WEB / "index.html").read_text()
    used = set(re.findall(r'data-(?:text|label)="([^"]+)"', code))
    used |= set(re.findall(r'(?:say|label|text)\([^"`()]*?"([a-z][\w.]+)"', code))
    assert len(used) > 60
    assert used <= english
