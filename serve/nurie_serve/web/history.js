// What was made, kept in this browser (IndexedDB): pictures in, pictures out, settings, job ids.
// Where a browser keeps nothing (some private windows) it lasts as long as the page.

const KEPT = 60;
const NAME = "nurie";

/**
 * An entry is one picture, asked for or made: {id, run, job, status, seed, settings, inputs,
 * result}. `inputs` names pictures by id, so that a sketch is kept once however often it is used.
 */
export class History {
  entries = []; // newest first
  #pictures = new Map();
  #ids = new WeakMap();
  #database = null;

  async open() {
    try {
      this.#database = await openDatabase();
      for (const { id, file } of await this.#all("pictures")) this.#know(id, file);
      this.entries = await this.#all("entries");
      this.entries.sort((one, two) => two.time - one.time);
    } catch {
      this.#database = null;
    }
  }

  /** The id of an input picture, which is kept from now on. */
  keep(file) {
    const id = this.#ids.get(file) ?? newId();
    this.#know(id, file);
    this.#write("pictures", (store) => store.put({ id, file }));
    return id;
  }

  file(id) {
    return this.#pictures.get(id);
  }

  add(entry) {
    this.entries.unshift(entry);
    this.save(entry);
    const dropped = this.entries.slice(KEPT).filter((old) => old.status === "done");
    for (const old of dropped) this.remove(old);
    return dropped;
  }

  save(entry) {
    // What is shown while it is made is not worth keeping.
    const { progress, preview, ...kept } = entry;
    this.#write("entries", (store) => store.put(kept));
  }

  remove(entry) {
    this.entries = this.entries.filter((other) => other !== entry);
    this.#write("entries", (store) => store.delete(entry.id));
    const used = new Set(this.entries.flatMap((other) => Object.values(other.inputs)));
    for (const id of Object.values(entry.inputs)) {
      if (used.has(id)) continue;
      this.#pictures.delete(id);
      this.#write("pictures", (store) => store.delete(id));
    }
  }

  #know(id, file) {
    this.#pictures.set(id, file);
    this.#ids.set(file, id);
  }

  #all(name) {
    return answer(this.#database.transaction(name).objectStore(name).getAll());
  }

  #write(name, change) {
    if (!this.#database) return;
    try {
      const transaction = this.#database.transaction(name, "readwrite");
      // A full disk costs the memory of it, not the picture on the page.
      transaction.onabort = (event) => event.stopPropagation();
      change(transaction.objectStore(name));
    } catch {
      this.#database = null;
    }
  }
}

/** Random, and harmless as an Idempotency-Key; crypto.randomUUID needs a secure context. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function openDatabase() {
  const request = indexedDB.open(NAME, 1);
  request.onupgradeneeded = () => {
    for (const name of ["entries", "pictures"]) {
      request.result.createObjectStore(name, { keyPath: "id" });
    }
  };
  return answer(request);
}

function answer(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
