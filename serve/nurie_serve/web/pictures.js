// The pictures that go in: drop, paste, choose, remove. A reference may be several.

import { hush, label, say, sayProblem } from "/web/text.js";
import { urlOf } from "/web/urls.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];
const REQUIRED = ["sketch", "reference"];

export class Pictures {
  #slots = new Map();
  #files = new Map();
  #changed;
  #loose;
  #target = null; // slot that the pointer or the keyboard was in last

  /**
   * @param changed Called with the slot's name after every change.
   * @param loose Called with a file that was dropped beside the slots.
   */
  constructor(changed, loose) {
    this.#changed = changed;
    this.#loose = loose;
    for (const slot of document.querySelectorAll("[data-input]")) this.#connect(slot);
    document.addEventListener("paste", (event) => this.#paste(event));
    // A picture that misses a slot must not replace the page.
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      for (const file of event.dataTransfer.files) this.#loose(file);
    });
  }

  get complete() {
    return REQUIRED.every((name) => this.files(name).length > 0);
  }

  files(name) {
    return this.#files.get(name) ?? [];
  }

  /** All that was chosen: lists of files by name. */
  get all() {
    return Object.fromEntries([...this.#files].filter(([, files]) => files.length > 0));
  }

  /** Take files into a slot: the last one replaces, references are added. */
  add(name, files) {
    const good = files.filter((file) => TYPES.includes(file.type));
    if (good.length > 0) {
      const many = this.#slots.get(name).many;
      this.set(name, many ? [...this.files(name), ...good] : good.slice(-1));
    }
    if (good.length < files.length) this.showError(name, { code: "not_a_picture" });
  }

  set(name, files) {
    this.#files.set(name, files);
    this.#show(name);
  }

  /** The first slot that needs a picture. */
  get free() {
    return REQUIRED.find((name) => this.files(name).length === 0);
  }

  showError(name, problem) {
    const slot = this.#slots.get(name);
    if (!slot) return false;
    slot.element.classList.add("wrong");
    const fold = slot.element.closest("details");
    if (fold) fold.open = true;
    sayProblem(slot.error, problem);
    slot.element.scrollIntoView({ block: "nearest" });
    return true;
  }

  clearErrors() {
    for (const slot of this.#slots.values()) clearError(slot);
  }

  #connect(element) {
    const name = element.dataset.input;
    const [drop, input, list, error] = [".drop", "input", ".chosen", ".error"].map((found) =>
      element.querySelector(found),
    );
    this.#slots.set(name, { element, input, list, error, many: input.multiple });
    input.addEventListener("change", () => {
      const files = [...input.files];
      input.value = ""; // the same file may be chosen again
      if (files.length > 0) this.add(name, files);
    });
    for (const kind of ["pointerenter", "focusin"]) {
      element.addEventListener(kind, () => (this.#target = name));
    }
    element.addEventListener("pointerleave", () => (this.#target = null));
    element.addEventListener("dragover", () => drop.classList.add("over"));
    for (const kind of ["dragleave", "drop"]) {
      element.addEventListener(kind, () => drop.classList.remove("over"));
    }
    element.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.add(name, [...event.dataTransfer.files]);
    });
  }

  #paste(event) {
    const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
    if (files.length === 0) return;
    event.preventDefault();
    this.add(this.#target ?? this.free ?? "sketch", files);
  }

  #show(name) {
    const slot = this.#slots.get(name);
    const files = this.files(name);
    slot.list.replaceChildren(...files.map((file) => this.#makeChosen(name, file)));
    slot.list.dataset.count = Math.min(files.length, 5);
    slot.element.classList.toggle("filled", files.length > 0);
    clearError(slot);
    this.#changed(name);
  }

  #makeChosen(name, file) {
    const item = document.createElement("li");
    const image = document.createElement("img");
    const button = document.createElement("button");
    image.src = urlOf(file);
    image.alt = file.name;
    button.type = "button";
    button.className = "remove";
    button.append("×");
    label(button, "remove.input", { name: file.name });
    button.addEventListener("click", () => {
      this.set(
        name,
        this.files(name).filter((other) => other !== file),
      );
      this.#slots.get(name).input.focus();
    });
    item.append(image, button);
    return item;
  }
}

function clearError(slot) {
  slot.element.classList.remove("wrong");
  hush(slot.error);
}
