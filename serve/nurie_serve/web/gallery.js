// The pictures of a run side by side, and the strip of all that was made.

import { hush, label, say, sayProblem } from "/web/text.js";
import { urlOf } from "/web/urls.js";

const $ = (id) => document.getElementById(id);

export class Gallery {
  #history;
  #open;
  #tiles = new Map(); // entry id -> tile of the grid
  #thumbs = new Map(); // entry id -> button of the strip

  /** @param open Called with the entry that the visitor chose. */
  constructor(history, open) {
    this.#history = history;
    this.#open = open;
  }

  /** Lay out the pictures of one run. */
  showRun(entries) {
    this.#tiles.clear();
    const several = new Set(entries.map((entry) => entry.inputs.reference)).size > 1;
    const items = entries.map((entry) => {
      const item = document.createElement("li");
      item.append(this.#makeTile(entry, several));
      return item;
    });
    $("grid").replaceChildren(...items);
    $("grid").style.setProperty("--columns", Math.round(Math.sqrt(1.5 * entries.length)));
    for (const entry of entries) this.update(entry);
  }

  update(entry) {
    if (entry.status === "done" && !this.#thumbs.has(entry.id)) this.#addThumb(entry);
    const tile = this.#tiles.get(entry.id);
    if (!tile) return;
    const sketch = this.#history.file(entry.inputs.sketch);
    const source = entry.result ? urlOf(entry.result) : entry.preview ?? (sketch && urlOf(sketch));
    if (source && tile.image.src !== source) tile.image.src = source;
    tile.button.classList.toggle("unfinished", !entry.result);
    tile.button.classList.toggle("failed", entry.status === "failed");
    tile.button.disabled = !entry.result;
    showProgress(tile.progress, entry);
    sayState(tile.state, entry);
    label(tile.button, entry.result ? "tile" : "tile.waiting", { seed: entry.seed });
  }

  remove(entry) {
    this.#thumbs.get(entry.id)?.remove();
    this.#thumbs.delete(entry.id);
    this.#tiles.get(entry.id)?.button.closest("li").remove();
    this.#tiles.delete(entry.id);
    this.#showStrip();
  }

  /** Mark the picture that is shown large. */
  mark(entry) {
    for (const [id, thumb] of this.#thumbs) {
      const current = id === entry?.id;
      thumb.setAttribute("aria-current", String(current));
      if (current) thumb.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
  }

  #makeTile(entry, showReference) {
    const button = create("button", "tile");
    const image = create("img");
    const state = create("span", "state");
    const progress = create("progress");
    button.type = "button";
    image.alt = "";
    progress.setAttribute("aria-hidden", "true");
    button.append(image, state, progress);
    const reference = this.#history.file(entry.inputs.reference);
    if (showReference && reference) {
      const small = create("img", "its-reference");
      small.src = urlOf(reference);
      small.alt = "";
      button.append(small);
    }
    button.addEventListener("click", () => this.#open(entry));
    const tile = { button, image, state, progress };
    this.#tiles.set(entry.id, tile);
    return button;
  }

  #addThumb(entry) {
    const button = create("button");
    const image = create("img");
    button.type = "button";
    image.src = urlOf(entry.result);
    image.alt = "";
    label(button, "thumb", { seed: entry.seed });
    button.append(image);
    button.addEventListener("click", () => this.#open(entry));
    this.#thumbs.set(entry.id, button);
    const order = this.#history.entries.filter((other) => this.#thumbs.has(other.id));
    $("history-strip").append(...order.map((other) => this.#thumbs.get(other.id)));
    this.#showStrip();
  }

  #showStrip() {
    $("history").hidden = this.#thumbs.size === 0;
  }
}

/** How far an entry is, in words. */
export function sayState(element, entry) {
  const { status, progress, problem } = entry;
  if (status === "failed") sayProblem(element, problem);
  else if (status === "queued" && progress?.position) sayQueued(element, progress);
  else if (status === "running" && progress?.step) sayStep(element, progress);
  else if (status === "done") hush(element);
  else say(element, `state.${status}`);
}

export function showProgress(element, entry) {
  const { status, progress } = entry;
  element.hidden = ["done", "failed", "cancelled"].includes(status);
  if (status === "running" && progress?.steps) {
    element.max = progress.steps;
    element.value = progress.step;
  } else element.removeAttribute("value");
}

function sayQueued(element, { position, eta_s }) {
  if (eta_s === null) say(element, "state.place", { position });
  else say(element, "state.place.eta", { position, seconds: Math.ceil(eta_s) });
}

function sayStep(element, { step, steps, eta_s }) {
  if (eta_s === null || !steps) say(element, "state.step", { step, steps: steps ?? "?" });
  else say(element, "state.step.eta", { step, steps, seconds: Math.ceil(eta_s) });
}

function create(tag, className = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  return element;
}
