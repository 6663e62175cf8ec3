// The pictures that go in: drop, paste, choose, remove.

const TYPES = ["image/png", "image/jpeg", "image/webp"];
const REQUIRED = ["sketch", "reference"];

export class Pictures {
  #slots = new Map();
  #files = new Map();
  #changed;
  #target = null; // slot that the pointer or the keyboard was in last

  constructor(changed) {
    this.#changed = changed;
    for (const slot of document.querySelectorAll("[data-input]")) this.#connect(slot);
    document.addEventListener("paste", (event) => this.#paste(event));
    // A picture that misses a slot must not replace the page.
    for (const kind of ["dragover", "drop"]) {
      document.addEventListener(kind, (event) => event.preventDefault());
    }
  }

  get complete() {
    return REQUIRED.every((name) => this.#files.has(name));
  }

  file(name) {
    return this.#files.get(name);
  }

  appendTo(form) {
    for (const [name, file] of this.#files) form.append(name, file);
  }

  set(name, file) {
    if (!TYPES.includes(file.type)) {
      this.showError(name, "Only PNG, JPEG and WebP pictures can be used.");
      return;
    }
    this.#files.set(name, file);
    this.#show(name);
  }

  remove(name) {
    this.#files.delete(name);
    this.#slots.get(name).querySelector("input").value = "";
    this.#show(name);
  }

  showError(name, text) {
    const slot = this.#slots.get(name);
    if (!slot) return false;
    slot.classList.add("wrong");
    slot.querySelector(".error").textContent = text;
    slot.scrollIntoView({ block: "nearest", behavior: "smooth" });
    return true;
  }

  clearErrors() {
    for (const name of this.#slots.keys()) this.#clearError(name);
  }

  #clearError(name) {
    const slot = this.#slots.get(name);
    slot.classList.remove("wrong");
    slot.querySelector(".error").textContent = "";
  }

  #connect(slot) {
    const name = slot.dataset.input;
    const drop = slot.querySelector(".drop");
    const input = slot.querySelector("input");
    this.#slots.set(name, slot);
    input.addEventListener("change", () => input.files[0] && this.set(name, input.files[0]));
    slot.querySelector(".remove").addEventListener("click", () => {
      this.remove(name);
      input.focus();
    });
    for (const kind of ["pointerenter", "focusin"]) {
      slot.addEventListener(kind, () => (this.#target = name));
    }
    slot.addEventListener("pointerleave", () => (this.#target = null));
    slot.addEventListener("dragover", () => drop.classList.add("over"));
    for (const kind of ["dragleave", "drop"]) {
      slot.addEventListener(kind, () => drop.classList.remove("over"));
    }
    slot.addEventListener("drop", (event) => {
      const [file] = event.dataTransfer.files;
      if (file) this.set(name, file);
    });
  }

  #paste(event) {
    const file = [...event.clipboardData.files].find((found) => found.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    this.set(this.#target ?? REQUIRED.find((name) => !this.#files.has(name)) ?? "sketch", file);
  }

  #show(name) {
    const slot = this.#slots.get(name);
    const image = slot.querySelector("img");
    const file = this.#files.get(name);
    if (image.src) URL.revokeObjectURL(image.src);
    if (file) image.src = URL.createObjectURL(file);
    else image.removeAttribute("src");
    image.alt = file ? `${name}: ${file.name}` : "";
    image.hidden = slot.querySelector(".remove").hidden = !file;
    slot.classList.toggle("filled", Boolean(file));
    this.#clearError(name);
    this.#changed();
  }
}
