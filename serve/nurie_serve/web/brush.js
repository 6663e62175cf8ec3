// Painting a mask over the sketch: what is painted is the figure. Strokes are kept, not pixels, so
// undo is leaving one out.

import { urlOf } from "/web/urls.js";

const LARGEST = 1536; // pixels; the server needs no finer mask
const KEY_STEP = 0.02; // of the sketch's width
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const $ = (id) => document.getElementById(id);

export class Brush {
  #dialog = $("brush");
  #canvas = $("brush-canvas");
  #context = this.#canvas.getContext("2d");
  #done;
  #sketch = null;
  #strokes = [];
  #stroke = null;
  #cursor = [0.5, 0.5]; // where the keyboard paints, in parts of the sketch

  /** @param done Called with the mask as a PNG file. */
  constructor(done) {
    this.#done = done;
    $("brush-undo").addEventListener("click", () => this.#undo());
    $("brush-fill").addEventListener("click", () => this.#add({ kind: "fill" }));
    $("brush-clear").addEventListener("click", () => this.#add({ kind: "clear" }));
    $("brush-cancel").addEventListener("click", () => this.#dialog.close());
    $("brush-done").addEventListener("click", () => this.#finish());
    this.#dialog.addEventListener("keydown", (event) => this.#key(event));
    const canvas = this.#canvas;
    canvas.tabIndex = 0;
    canvas.addEventListener("keydown", (event) => this.#paintByKey(event));
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.#begin(this.#pointOf(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.#stroke) return;
      for (const each of event.getCoalescedEvents?.() ?? [event]) this.#extend(this.#pointOf(each));
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, () => (this.#stroke = null));
    }
  }

  /** Paint over a sketch; the strokes of the same sketch are still there. */
  async open(sketch) {
    const image = $("brush-sketch");
    image.src = urlOf(sketch);
    await image.decode();
    const scale = Math.min(1, LARGEST / Math.max(image.naturalWidth, image.naturalHeight));
    if (sketch !== this.#sketch) this.#strokes = [];
    this.#sketch = sketch;
    this.#canvas.width = Math.round(image.naturalWidth * scale);
    this.#canvas.height = Math.round(image.naturalHeight * scale);
    $("brush-sheet").style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
    this.#draw();
    this.#dialog.showModal();
  }

  async #finish() {
    const { width, height } = this.#canvas;
    const flat = Object.assign(document.createElement("canvas"), { width, height });
    const context = flat.getContext("2d");
    context.fillStyle = "black";
    context.fillRect(0, 0, width, height);
    context.drawImage(this.#canvas, 0, 0);
    const blob = await new Promise((resolve) => flat.toBlob(resolve, "image/png"));
    this.#dialog.close();
    this.#done(new File([blob], "mask.png", { type: "image/png" }));
  }

  #begin(point) {
    const kind = $("brush-erase").checked ? "erase" : "paint";
    const width = (Number($("brush-size").value) / 100) * this.#canvas.width;
    this.#stroke = { kind, width, points: [point] };
    this.#add(this.#stroke);
  }

  #extend(point) {
    this.#stroke.points.push(point);
    paint(this.#context, { ...this.#stroke, points: this.#stroke.points.slice(-2) });
  }

  #add(stroke) {
    this.#strokes.push(stroke);
    paint(this.#context, stroke);
    this.#enable();
  }

  #undo() {
    this.#strokes.pop();
    this.#draw();
  }

  #draw() {
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    for (const stroke of this.#strokes) paint(this.#context, stroke);
    this.#enable();
  }

  #enable() {
    $("brush-undo").disabled = $("brush-done").disabled = this.#strokes.length === 0;
  }

  #pointOf(event) {
    const box = this.#canvas.getBoundingClientRect();
    const { width, height } = this.#canvas;
    return [
      ((event.clientX - box.left) / box.width) * width,
      ((event.clientY - box.top) / box.height) * height,
    ];
  }

  #key(event) {
    if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.#undo();
    }
  }

  /** Arrows move a mark over the sketch, with Shift they draw; space paints where it is. */
  #paintByKey(event) {
    const { width, height } = this.#canvas;
    const here = () => [this.#cursor[0] * width, this.#cursor[1] * height];
    if (event.key in ARROWS) {
      const [right, down] = ARROWS[event.key];
      const from = here();
      this.#cursor = [
        clamp(this.#cursor[0] + right * KEY_STEP),
        clamp(this.#cursor[1] + (down * KEY_STEP * width) / height),
      ];
      if (event.shiftKey) {
        this.#begin(from);
        this.#extend(here());
      }
    } else if (event.key === " ") this.#begin(here());
    else return;
    this.#stroke = null;
    event.preventDefault();
    const { style } = $("brush-sheet");
    style.setProperty("--cursor-x", `${100 * this.#cursor[0]}%`);
    style.setProperty("--cursor-y", `${100 * this.#cursor[1]}%`);
  }
}

function paint(context, { kind, width, points }) {
  const { canvas } = context;
  context.globalCompositeOperation = kind === "erase" ? "destination-out" : "source-over";
  context.fillStyle = context.strokeStyle = "white";
  if (kind === "clear") context.clearRect(0, 0, canvas.width, canvas.height);
  else if (kind === "fill") context.fillRect(0, 0, canvas.width, canvas.height);
  else {
    context.lineWidth = width;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(...points[0]);
    for (const point of points) context.lineTo(...point);
    context.stroke();
  }
}

function clamp(part) {
  return Math.min(1, Math.max(0, part));
}
