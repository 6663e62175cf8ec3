// One picture, as large as there is room: before/after, zoom, pan.

import { label, text } from "/web/text.js";
import { urlOf } from "/web/urls.js";

const WIPE_MS = 1100;
const MOST = 8;
const STEP = 1.4;
const PAN = 60; // pixels
const GRIP = 20; // pixels beside the divider

const $ = (id) => document.getElementById(id);

export class Viewer {
  #zoom = 1;
  #place = { x: 0, y: 0 }; // of the sheet in the view, in pixels
  #pointers = new Map();
  #wipe = 0;
  #history;
  current = null;

  constructor(history) {
    this.#history = history;
    $("split").addEventListener("input", () => this.split(Number($("split").value)));
    $("split").addEventListener("keydown", (event) => this.#panByKey(event));
    $("zoom-in").addEventListener("click", () => this.zoomIn());
    $("zoom-out").addEventListener("click", () => this.zoomOut());
    $("zoom-fit").addEventListener("click", () => this.fit());
    for (const image of [$("before"), $("after")]) {
      image.addEventListener("load", () => this.#layOut());
    }
    new ResizeObserver(() => this.#layOut()).observe($("view"));
    this.#connectPointers($("view"));
  }

  show(entry) {
    const other = this.current?.id !== entry.id;
    this.current = entry;
    if (other) this.fit();
    this.update();
  }

  /** Show what is new of the current entry. */
  update() {
    const { inputs, result, preview, seed } = this.current;
    const sketch = this.#history.file(inputs.sketch);
    const picture = result ? urlOf(result) : preview;
    const news = Boolean(result) && $("after").dataset.entry !== this.current.id;
    if (sketch) setSource($("before"), urlOf(sketch));
    else $("before").removeAttribute("src");
    if (picture) setSource($("after"), picture);
    else $("after").removeAttribute("src");
    $("after").hidden = !picture;
    $("before").hidden = !sketch;
    $("after").dataset.entry = result ? this.current.id : "";
    label($("after"), result ? "picture" : "picture.unfinished", { seed });
    $("divider").hidden = !result || !sketch;
    if (news) this.#reveal();
    else if (!result) this.split(picture ? 0 : 100);
  }

  /** Sketch on the left of so many percent, its colours on the right. */
  split(percent) {
    this.#wipe++;
    this.#setSplit(percent);
  }

  /** Sketch and result by turns. */
  swap() {
    this.split(Number($("split").value) > 50 ? 0 : 100);
  }

  fit() {
    this.#zoom = 1;
    this.#layOut();
  }

  zoomIn() {
    this.zoom(STEP);
  }

  zoomOut() {
    this.zoom(1 / STEP);
  }

  /** Zoom by a factor; `at` stays where it is (a point of the view; its middle). */
  zoom(factor, at = { x: $("view").clientWidth / 2, y: $("view").clientHeight / 2 }) {
    const zoom = Math.min(MOST, Math.max(1, this.#zoom * factor));
    const change = zoom / this.#zoom;
    this.#zoom = zoom;
    this.#move(at.x - (at.x - this.#place.x) * change, at.y - (at.y - this.#place.y) * change);
  }

  pan(right, down) {
    this.#move(this.#place.x + right, this.#place.y + down);
  }

  #layOut() {
    this.#move(this.#place.x, this.#place.y);
  }

  #move(x, y) {
    const view = $("view");
    const image = $("before").naturalWidth ? $("before") : $("after");
    if (!image.naturalWidth || !view.clientWidth) return;
    const { clientWidth, clientHeight } = view;
    const fit = Math.min(
      clientWidth / image.naturalWidth,
      clientHeight / image.naturalHeight,
    );
    const width = image.naturalWidth * fit * this.#zoom;
    const height = image.naturalHeight * fit * this.#zoom;
    this.#place = { x: within(x, clientWidth - width), y: within(y, clientHeight - height) };
    const { style } = $("sheet");
    style.setProperty("--width", `${width}px`);
    style.setProperty("--height", `${height}px`);
    style.setProperty("--x", `${this.#place.x}px`);
    style.setProperty("--y", `${this.#place.y}px`);
    view.classList.toggle("zoomed", this.#zoom > 1);
    $("zoom-fit").textContent = `${Math.round(this.#zoom * 100)} %`;
  }

  #setSplit(percent) {
    $("split").value = percent;
    $("split").setAttribute("aria-valuetext", text("split.value", { n: Math.round(percent) }));
    $("sheet").style.setProperty("--split", `${percent}%`);
  }

  /** Wipe from the sketch to its colours. */
  #reveal() {
    const mine = ++this.#wipe;
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.#setSplit(0);
      return;
    }
    const begin = performance.now();
    const step = () => {
      if (mine !== this.#wipe) return;
      const left = Math.max(0, 1 - (performance.now() - begin) / WIPE_MS);
      this.#setSplit(100 * left ** 3);
      if (left > 0) requestAnimationFrame(step);
    };
    step();
  }

  #panByKey(event) {
    const way = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (!event.shiftKey || !(event.key in way)) return;
    event.preventDefault();
    const [right, down] = way[event.key];
    this.pan(right * PAN, down * PAN);
  }

  #connectPointers(view) {
    view.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    view.addEventListener("dblclick", (event) => {
      if (this.#zoom > 1) this.fit();
      else this.zoom(3, pointIn(view, event));
    });
    view.addEventListener("pointerdown", (event) => {
      view.setPointerCapture(event.pointerId);
      const point = pointIn(view, event);
      this.#pointers.set(event.pointerId, { ...point, grip: this.#onDivider(point) });
      this.#drag(event);
    });
    view.addEventListener("pointermove", (event) => this.#drag(event));
    for (const kind of ["pointerup", "pointercancel"]) {
      view.addEventListener(kind, (event) => this.#pointers.delete(event.pointerId));
    }
  }

  #onDivider({ x }) {
    const share = Number($("split").value) / 100;
    return Math.abs(x - this.#place.x - share * $("sheet").clientWidth) < GRIP;
  }

  #wheel(event) {
    // At its smallest the picture lets the page scroll.
    if (event.deltaY > 0 && this.#zoom === 1) return;
    event.preventDefault();
    this.zoom(STEP ** (-event.deltaY / 150), pointIn($("view"), event));
  }

  /** One pointer moves the divider, or the picture if it is zoomed; two zoom. */
  #drag(event) {
    const before = this.#pointers.get(event.pointerId);
    if (!before) return;
    const now = { ...pointIn($("view"), event), grip: before.grip };
    this.#pointers.set(event.pointerId, now);
    const [other] = [...this.#pointers].filter(([id]) => id !== event.pointerId);
    if (other) this.zoom(distance(now, other[1]) / distance(before, other[1]), other[1]);
    else if (this.#zoom > 1 && !now.grip) this.pan(now.x - before.x, now.y - before.y);
    else if (!$("divider").hidden) {
      const share = (now.x - this.#place.x) / $("sheet").clientWidth;
      this.split(100 * Math.min(1, Math.max(0, share)));
    }
  }
}

function setSource(image, source) {
  if (image.src !== source) image.src = source;
}

/** A place so that no more is empty than must be: in the middle if there is room. */
function within(place, room) {
  return room >= 0 ? room / 2 : Math.min(0, Math.max(room, place));
}

function pointIn(view, event) {
  const { left, top } = view.getBoundingClientRect();
  return { x: event.clientX - left, y: event.clientY - top };
}

function distance(one, two) {
  return Math.max(1, Math.hypot(one.x - two.x, one.y - two.y));
}
