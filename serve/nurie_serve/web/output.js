// What comes out: one picture large or those of a run side by side, and what was made before.

import { Gallery } from "/web/gallery.js";
import { hush, label, sayProblem } from "/web/text.js";
import { release, save } from "/web/urls.js";
import { Viewer } from "/web/viewer.js";

const $ = (id) => document.getElementById(id);

export class Output {
  #api;
  #history;
  #gallery;
  #run = []; // entries of the newest run
  #before = null; // what was shown before it
  viewer;

  constructor(api, history) {
    this.#api = api;
    this.#history = history;
    this.viewer = new Viewer(history);
    this.#gallery = new Gallery(history, (entry) => this.open(entry));
    $("back-to-grid").addEventListener("click", () => {
      this.#show("grid");
      $("grid").querySelector("button:enabled")?.focus({ preventScroll: true });
    });
  }

  /** The finished picture that is shown large, if there is one. */
  get current() {
    return !$("viewer").hidden && this.viewer.current?.result ? this.viewer.current : null;
  }

  /** Show the pictures of a run while they are made. */
  showRun(entries) {
    this.#before = this.current;
    this.#run = entries;
    this.#gallery.showRun(entries);
    if (entries.length > 1) this.#show("grid");
    else this.open(entries[0]);
  }

  /** A run has ended; what was cancelled goes, what failed says why. */
  endRun(made, failed) {
    const gone = this.#run.filter((entry) => !made.includes(entry) && !failed.includes(entry));
    this.#run = made;
    for (const entry of gone) this.#gallery.remove(entry);
    if (made.length === 0) this.showLatest(this.#before);
    else if (!$("viewer").hidden) this.open(this.current ?? made[0]);
  }

  /** Something is new of an entry. */
  update(entry) {
    this.#gallery.update(entry);
    if ($("viewer").hidden || this.viewer.current !== entry) return;
    this.viewer.update();
    this.#showBar(entry);
  }

  open(entry) {
    this.#show("viewer");
    this.viewer.show(entry);
    this.#showBar(entry);
    $("back-to-grid").hidden = this.#run.length < 2 || !this.#run.includes(entry);
  }

  showLatest(wanted = null) {
    const latest = wanted ?? this.#history.entries.find((entry) => entry.result);
    if (latest) this.open(latest);
    else this.#show("empty");
  }

  /** Go through what was made: 1 is older, -1 newer. */
  step(way) {
    const made = this.#history.entries.filter((entry) => entry.result);
    const next = made[made.indexOf(this.viewer.current) + way];
    if (next) this.open(next);
  }

  /** A button for every format that the server has. */
  showFormats(formats) {
    for (const name of formats) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name.toUpperCase();
      button.className = name === formats[0] ? "primary" : "";
      label(button, "save.as", { name: name.toUpperCase() });
      button.addEventListener("click", () => this.download(name));
      $("formats").append(button);
    }
  }

  /** The PNG is here; every other format is made by the server while it keeps the job. */
  async download(format) {
    const { job, result, seed } = this.current;
    hush($("result-error"));
    try {
      const blob =
        format === "png" ? result : await this.#api.blob(`/v1/jobs/${job}/images/0?format=${format}`);
      save(blob, `nurie-${seed}.${format}`);
    } catch (problem) {
      const gone = problem.code === "not_found";
      sayProblem($("result-error"), gone ? { code: "picture_gone" } : problem);
    }
  }

  /** Delete pictures here and on the server. */
  forget(entries) {
    for (const entry of entries) {
      this.#history.remove(entry);
      this.remove(entry);
      const request = { method: "DELETE" };
      if (entry.job) this.#api.request(`/v1/jobs/${entry.job}`, request).catch(() => {});
    }
    this.#run = this.#run.filter((entry) => !entries.includes(entry));
    this.showLatest();
  }

  /** Show an entry no more. */
  remove(entry) {
    this.#gallery.remove(entry);
    if (entry.result) release(entry.result);
  }

  #show(mode) {
    for (const each of ["empty", "grid", "viewer"]) $(each).hidden = each !== mode;
    if (mode === "viewer") return;
    $("result-bar").hidden = true;
    this.#gallery.mark(null);
  }

  #showBar(entry) {
    this.#gallery.mark(entry);
    $("result-bar").hidden = !entry.result;
    $("seed-used").textContent = entry.seed;
  }
}
