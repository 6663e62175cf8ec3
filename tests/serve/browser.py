"""The page in a headless browser, over the application and a replica without Ray around it."""

from __future__ import annotations

import base64
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from nurie.config.serve import JobsConfig, LimitsConfig, ServeConfig
from nurie_serve.ingress import create_api
from tests.serve.conftest import Handle, encode, line_drawing
from tests.serve.listening import listening
from tests.serve.waiting import eventually

NAMES = ("chromium", "chromium-browser", "google-chrome")
EXECUTABLE = next((found for name in NAMES if (found := shutil.which(name))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu"]
PATIENCE_MS = 15_000
SKETCH = encode(line_drawing(120, 90))
REFERENCES = {name: encode(Image.new("RGB", (40, 40), name)) for name in ("orange", "teal")}
DROP = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, { type }));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
}"""
UNNAMED = """() => {
  const named = (element) =>
    element.getAttribute("aria-label") ||
    (element.getAttribute("aria-labelledby") ?? "").split(" ").some(
      (id) => document.getElementById(id)?.textContent) ||
    [...(element.labels ?? [])].some((label) => label.textContent.trim()) ||
    element.textContent.trim() || element.getAttribute("alt");
  const found = document.querySelectorAll("a, button, input, select, canvas, progress, summary");
  return [...found]
    .filter((each) => each.checkVisibility() && !each.ariaHidden && !named(each))
    .map((each) => each.outerHTML);
}"""


expect.set_options(timeout=PATIENCE_MS)


class Studio:
    """An endpoint that can go away and come back, with what it keeps."""

    def __init__(self, folder: Path, keys_file: Path | None = None) -> None:
        self.config = ServeConfig(
            limits=LimitsConfig(max_pixels=1_000_000, max_side=512, max_body_bytes=4_000_000),
            jobs=JobsConfig(folder=str(folder), lease_s=2.0),
            keys_file=keys_file,
            batch_wait_timeout_s=0.0,
        )
        self.handle = Handle(self.config)
        self.port = 0
        self._running = ExitStack()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        app = create_api(self.config, self.handle)  # type: ignore[arg-type]
        self.port = self._running.enter_context(listening(app, self.port))

    def stop(self) -> None:
        self._running.close()

    def close(self) -> None:
        self.stop()
        self.handle.replica.close()

    @property
    def last(self) -> Any:
        """The last call of the model."""
        return self.handle.jobs[-1]


@contextmanager
def visit(
    browser: Browser, address: str, expected: str | None = None, **context: Any
) -> Iterator[Page]:
    """Open the page; whatever the console complains of fails the test.

    Args:
        browser: The browser.
        address: Of the endpoint.
        expected: Part of the complaints that are meant to be.
        context: Language, size, colours.
    """
    complaints: list[str] = []
    with browser.new_context(reduced_motion="reduce", **context) as opened:
        page = opened.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda told: (
                complaints.append(told.text) if told.type in ("error", "warning") else None
            ),
        )
        page.goto(address)
        yield page
    assert [each for each in complaints if expected is None or expected not in each] == []


def choose(page: Page, *references: str, sketch: bytes = SKETCH) -> None:
    """Choose the sketch and references by their files."""
    page.set_input_files("#sketch", {"name": "s.png", "mimeType": "image/png", "buffer": sketch})
    files = [
        {"name": f"{name}.png", "mimeType": "image/png", "buffer": REFERENCES[name]}
        for name in references or ("orange",)
    ]
    page.set_input_files("#reference", files)


def drop_anywhere(page: Page, name: str, data: bytes) -> None:
    """Drop a file beside all slots."""
    page.evaluate(DROP, [name, "image/png", base64.b64encode(data).decode()])


def unnamed_controls(page: Page) -> list[str]:
    """What a screen reader could not name, as HTML."""
    return page.evaluate(UNNAMED)


def run(page: Page, name: str = "Colour it") -> None:
    """Press the button and wait for what it makes."""
    page.get_by_role("button", name=name).click()
    ended(page)


def ended(page: Page) -> None:
    """Wait until a run has ended with a picture."""
    expect(page.locator("#cancel")).to_be_hidden()
    expect(page.locator("#result-bar:visible, #grid button:enabled:visible").first).to_be_visible()


def field(page: Page, name: str) -> Locator:
    """The number of a control."""
    return page.get_by_role("spinbutton", name=name, exact=True)


def jobs_of(page: Page) -> list[dict]:
    """The server's jobs, newest first."""
    return page.request.get(f"{page.url}v1/jobs").json()["jobs"]


def ended_jobs(page: Page) -> list[dict]:
    """The server's jobs, newest first, once all have ended."""

    def look() -> list[dict] | None:
        jobs = jobs_of(page)
        return [jobs] if all(job["finished_at"] for job in jobs) else None

    return eventually(look)[0]


@contextmanager
def some_steps(studio: Studio, count: int) -> Iterator[None]:
    """Within, the model makes so many steps and then stands still."""
    painter = studio.handle.painter
    left = threading.Semaphore(count)
    go_on = threading.Event()

    class Gate:
        def wait(self, _: float) -> None:
            while not left.acquire(timeout=0.01) and not go_on.is_set():
                pass

    before, painter.gate = painter.gate, Gate()
    try:
        yield
    finally:
        go_on.set()
        painter.gate = before


def saved(page: Page, name: str) -> bytes:
    """The file that a button of this name saves."""
    with page.expect_download() as download:
        page.get_by_role("button", name=f"Save as {name}").click()
    assert download.value.suggested_filename.endswith(f".{name.lower()}")
    return Path(download.value.path()).read_bytes()
