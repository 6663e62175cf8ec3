// From an entry to its picture: send the inputs once, ask for the job, follow it to its end.

import { newId } from "/web/history.js";

const FOLLOWED = 3; // event streams at once; browsers allow six connections to a server
const NUM_PREVIEWS = 8;
const SEEDS = 2 ** 32;

/** Entries for every reference with every seed, all with one run id. */
export function planEntries(history, files, settings, count) {
  const run = newId();
  const first = settings.seed ?? crypto.getRandomValues(new Uint32Array(1))[0];
  const { reference: references, ...others } = files;
  const shared = Object.fromEntries(
    Object.entries(others).map(([name, [file]]) => [name, history.keep(file)]),
  );
  return references.flatMap((reference) =>
    Array.from({ length: count }, (_, number) => {
      const seed = number === 0 ? first : (first + number) % SEEDS;
      return {
        id: newId(),
        run,
        time: Date.now(),
        job: null,
        status: "sending",
        seed,
        settings,
        inputs: { ...shared, reference: history.keep(reference) },
        result: null,
        problem: null,
      };
    }),
  );
}

export const isOver = (entry) => ["done", "failed", "cancelled"].includes(entry.status);

export class Runner {
  #api;
  #history;
  #changed;
  #uploads = new Map(); // input picture -> promise of its upload's id
  #stopping = null;
  #entries = [];
  /** Steps of a picture whose settings leave them to the model, if it says. */
  defaultSteps = null;

  /** @param changed Called with an entry to which something happened, and its run. */
  constructor(api, history, changed) {
    this.#api = api;
    this.#history = history;
    this.#changed = changed;
  }

  get running() {
    return this.#stopping !== null;
  }

  /** Make the pictures; ends when every entry has ended, well or not. */
  async run(entries) {
    this.#entries = entries;
    this.#stopping = new AbortController();
    const { signal } = this.#stopping;
    const submitted = this.#submitInTurn(entries, signal);
    const waiting = [...entries];
    const follow = async () => {
      for (let entry; (entry = waiting.shift()); ) {
        try {
          await submitted.get(entry);
          await this.#follow(entry, signal);
        } catch (error) {
          this.#end(entry, error);
        }
      }
    };
    await Promise.all(Array.from({ length: FOLLOWED }, follow));
    this.#stopping = null;
  }

  /** Cancel what has not ended, here and on the server. */
  cancel() {
    if (!this.running) return;
    this.#stopping.abort();
    for (const entry of this.#entries) if (!isOver(entry)) this.#cancelJob(entry);
  }

  #submitInTurn(entries, signal) {
    const submitted = new Map();
    let turn = Promise.resolve();
    for (const entry of entries) {
      turn = turn
        .catch((error) => {
          // A bad reference is its own matter; anything else would be refused again.
          if (error.field !== "reference") throw error;
        })
        .then(() => entry.job || this.#submit(entry, signal));
      turn.catch(() => {});
      submitted.set(entry, turn);
    }
    return submitted;
  }

  async #submit(entry, signal) {
    const job = await this.#post(entry, signal).catch((error) => {
      if (error.code !== "not_found") throw error;
      // The server keeps uploads for a while only.
      this.#uploads.clear();
      return this.#post(entry, signal);
    });
    entry.job = job.id;
    this.#update(entry, { status: "queued" });
    if (signal.aborted) this.#cancelJob(entry);
  }

  async #post(entry, signal) {
    const form = new FormData();
    for (const [name, id] of Object.entries(entry.inputs)) {
      form.append(name, await this.#upload(name, id, signal));
    }
    const steps = entry.settings.num_inference_steps ?? this.defaultSteps;
    form.append("params", JSON.stringify({ ...entry.settings, seed: entry.seed }));
    form.append("preview_every", Math.min(100, Math.max(1, Math.floor(steps / NUM_PREVIEWS))) || 1);
    signal.throwIfAborted();
    // Whole: whether the job was accepted must be known to cancel it.
    return this.#api.json("/v1/jobs", {
      method: "POST",
      body: form,
      headers: { "Idempotency-Key": entry.id },
      signal,
      whole: true,
    });
  }

  #upload(name, id, signal) {
    if (!this.#uploads.has(id)) {
      const form = new FormData();
      form.append("image", this.#history.file(id));
      const sent = this.#api.json("/v1/uploads", { method: "POST", body: form, signal }).then(
        (upload) => upload.upload_id,
        (error) => {
          this.#uploads.delete(id);
          if (error.field === "image" || error.status === 415) error.field = name;
          throw error;
        },
      );
      this.#uploads.set(id, sent);
    }
    return this.#uploads.get(id);
  }

  async #follow(entry, signal) {
    for await (const { kind, data } of this.#api.events(entry.job, signal)) {
      if (kind === "queued") this.#show(entry, { status: "queued", progress: data });
      else if (kind === "started") this.#show(entry, { status: "running", progress: {} });
      else if (kind === "progress") this.#show(entry, { status: "running", progress: data });
      else if (kind === "preview") this.#show(entry, { preview: data.image });
      else if (kind === "done") await this.#finish(entry, data, signal);
      else this.#update(entry, { status: kind, problem: data.error });
    }
  }

  async #finish(entry, job, signal) {
    const [image] = job.images;
    const result = await this.#api.blob(image.url, { signal });
    this.#update(entry, { status: "done", seed: image.seed, result, preview: null });
  }

  #end(entry, error) {
    if (isOver(entry)) return;
    if (error.name === "AbortError") this.#update(entry, { status: "cancelled" });
    else this.#update(entry, { status: "failed", problem: error });
  }

  #cancelJob(entry) {
    if (!entry.job) return;
    this.#api.request(`/v1/jobs/${entry.job}/cancel`, { method: "POST" }).catch(() => {});
  }

  #show(entry, news) {
    Object.assign(entry, news);
    this.#changed(entry, this.#entries);
  }

  #update(entry, news) {
    this.#show(entry, news);
    this.#history.save(entry);
  }
}
