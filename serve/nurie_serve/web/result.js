// The pictures that come out: before/after slider, download, history of this session.

const KEPT = 30;
const WIPE_MS = 1100;

const $ = (id) => document.getElementById(id);

export class Result {
  #entries = [];
  #wipe = 0;
  current = null;

  constructor() {
    $("after").addEventListener("load", ({ target }) => {
      const ratio = target.naturalWidth / target.naturalHeight;
      $("compare").style.setProperty("--ratio", ratio);
    });
    $("split").addEventListener("input", () => {
      this.#wipe++;
      this.#split(Number($("split").value));
    });
  }

  /** Show a new picture and put it first into the history. */
  add(blob, sketch, seed, settings) {
    const entry = {
      seed: Number(seed),
      settings: { ...settings, seed: Number(seed) },
      after: URL.createObjectURL(blob),
      before: URL.createObjectURL(sketch),
    };
    entry.button = this.#makeButton(entry);
    this.#entries.unshift(entry);
    $("history-strip").prepend(entry.button);
    if (this.#entries.length > KEPT) this.#drop(this.#entries.pop());
    $("history").hidden = this.#entries.length < 2;
    this.#show(entry);
    $("announce").textContent = `The picture is ready. Seed ${entry.seed}.`;
  }

  #makeButton(entry) {
    const button = document.createElement("button");
    const image = document.createElement("img");
    button.type = "button";
    button.setAttribute("aria-label", `Show the picture with seed ${entry.seed}`);
    image.src = entry.after;
    image.alt = "";
    button.append(image);
    button.addEventListener("click", () => this.#show(entry));
    return button;
  }

  #show(entry) {
    this.current = entry;
    $("empty").hidden = true;
    $("compare").hidden = $("result-bar").hidden = false;
    $("after").src = entry.after;
    $("before").src = entry.before;
    $("seed-used").textContent = entry.seed;
    $("download").href = entry.after;
    $("download").download = `nurie-${entry.seed}.png`;
    for (const other of this.#entries) {
      other.button.setAttribute("aria-current", String(other === entry));
    }
    this.#reveal();
  }

  /** Wipe from the sketch to its colours. */
  #reveal() {
    const mine = ++this.#wipe;
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.#split(0);
      return;
    }
    const begin = performance.now();
    const step = () => {
      if (mine !== this.#wipe) return;
      const left = Math.max(0, 1 - (performance.now() - begin) / WIPE_MS);
      this.#split(100 * left ** 3);
      if (left > 0) requestAnimationFrame(step);
    };
    step();
  }

  #split(percent) {
    $("split").value = percent;
    $("compare").style.setProperty("--split", `${percent}%`);
  }

  #drop(entry) {
    entry.button.remove();
    URL.revokeObjectURL(entry.after);
    URL.revokeObjectURL(entry.before);
  }
}
