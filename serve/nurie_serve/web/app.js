// The page: choose pictures, run, compare. All text comes in as text nodes, never as HTML.

import { Api, pause } from "/web/api.js";
import { Brush } from "/web/brush.js";
import { Controls } from "/web/controls.js";
import { sayState, showProgress } from "/web/gallery.js";
import { History } from "/web/history.js";
import { KeyForm } from "/web/key.js";
import { Output } from "/web/output.js";
import { Pictures } from "/web/pictures.js";
import { Runner, isOver, planEntries } from "/web/runner.js";
import * as shortcuts from "/web/shortcuts.js";
import { currentLanguage, hush, label, say, sayProblem, setLanguage, text } from "/web/text.js";
import { urlOf } from "/web/urls.js";

const VARIATIONS = 4;
const READY_MS = 15_000;
const STARTING_MS = 1500;
const MARK = "nurie:recipe"; // in every file that holds settings

const $ = (id) => document.getElementById(id);
const keyForm = new KeyForm();
const api = new Api((problem) => keyForm.ask(api, problem), showState);
const history = new History();
const output = new Output(api, history);
const runner = new Runner(api, history, changed);
const pictures = new Pictures(picturesChanged, takeLoose);
const controls = new Controls($("simple-controls"), $("advanced-controls"));
const brush = new Brush((mask) => pictures.set("mask", [mask]));

connect();
start();

async function start() {
  setLanguage(currentLanguage());
  keyForm.offerChange(api);
  watchReadiness();
  await history.open();
  for (const entry of history.entries) output.update(entry);
  const [options, examples] = await Promise.all([
    api.json("/v1/options"),
    api.json("/v1/examples"),
  ]);
  controls.build(options.controls);
  runner.defaultSteps = options.controls.find(
    (control) => control.name === "num_inference_steps",
  ).default;
  output.showFormats(options.formats);
  comeBack();
  updateRun();
  await showExamples(examples.examples);
}

function connect() {
  // Where the result lies below, less stands in between.
  if (matchMedia("(max-width: 860px)").matches) $("simple").open = false;
  $("language").value = currentLanguage();
  $("language").addEventListener("change", ({ target }) => setLanguage(target.value));
  const clicks = {
    cancel,
    vary,
    reuse,
    paint: () => brush.open(pictures.files("sketch")[0]),
    "find-mask": () => makeOfSketch("mask", "mask"),
    "draw-lines": () => makeOfSketch("line", "sketch"),
    reset: () => controls.reset(),
    remove: () => confirm(text("remove.sure")) && output.forget([output.current]),
    clear: () => confirm(text("history.sure")) && output.forget(history.entries.filter(isOver)),
    "reuse-seed": reuseSeed,
    "notice-use": () => useNotice?.(),
  };
  for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", act);
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    colour();
  });
  $("restore").addEventListener("change", ({ target }) => {
    const [file] = target.files;
    target.value = "";
    if (file) restoreFrom(file);
  });
  const ifOpen = (act) => () => output.current && act();
  shortcuts.listen({
    run: colour,
    cancel,
    vary: ifOpen(vary),
    reuseSeed: ifOpen(reuseSeed),
    save: ifOpen(() => output.download("png")),
    swap: ifOpen(() => output.viewer.swap()),
    zoomIn: ifOpen(() => output.viewer.zoomIn()),
    zoomOut: ifOpen(() => output.viewer.zoomOut()),
    fit: ifOpen(() => output.viewer.fit()),
    previous: ifOpen(() => output.step(1)),
    next: ifOpen(() => output.step(-1)),
    help: shortcuts.showHelp,
  });
}

/* The server */

async function watchReadiness() {
  for (let ready = false; ; await pause(ready ? READY_MS : STARTING_MS)) {
    try {
      ready = (await fetch("/readyz")).ok;
      showState(ready ? "ready" : "starting");
    } catch {
      ready = false;
      showState("lost");
    }
  }
}

function showState(state, problem = null) {
  const status = $("status");
  status.className = `status ${state}`;
  status.title = problem?.message ?? "";
  if (status.dataset.text !== `status.${state}`) say(status, `status.${state}`);
  if (runner.running && (state === "busy" || state === "lost")) {
    say($("working-text"), `status.${state}`);
  }
}

async function showExamples(examples) {
  for (const example of examples) {
    const button = document.createElement("button");
    button.type = "button";
    label(button, "example", { name: example.name.replace("-", " ") });
    const files = {};
    for (const name of ["sketch", "reference"]) {
      const blob = await api.blob(example[name]);
      files[name] = new File([blob], `${example.name}-${name}.png`, { type: blob.type });
      const image = document.createElement("img");
      image.src = urlOf(files[name]);
      image.alt = "";
      button.append(image);
    }
    button.addEventListener("click", () => {
      for (const [name, file] of Object.entries(files)) pictures.set(name, [file]);
      if (!runner.running) $("run").focus({ preventScroll: true });
    });
    $("examples-strip").append(button);
    $("examples").hidden = false;
  }
}

/** After a reload: the last pictures and settings, and what was not finished goes on. */
function comeBack() {
  const [last] = history.entries;
  if (!last) return;
  putBack(last, last.settings);
  const unfinished = history.entries.filter((entry) => !isOver(entry)).reverse();
  if (unfinished.length > 0) make(unfinished);
  else output.showLatest();
}

/* Pictures in */

function picturesChanged(name) {
  updateRun();
  if (name === "sketch") {
    const none = pictures.files("sketch").length === 0;
    for (const button of [$("paint"), $("find-mask"), $("draw-lines")]) button.disabled = none;
    // A mask belongs to its sketch.
    if (pictures.files("mask").length > 0) pictures.set("mask", []);
  }
  if (name === "sketch" || name === "reference") offerSettings(pictures.files(name).at(-1));
}

/** Have the server make a picture of the sketch, and put it into a slot. */
async function makeOfSketch(kind, slot) {
  const [sketch] = pictures.files("sketch");
  const body = new FormData();
  body.append("image", sketch);
  body.append("kind", kind);
  try {
    const made = await api.blob("/v1/preprocess", { method: "POST", body });
    if (pictures.files("sketch")[0] !== sketch) return; // another one was chosen meanwhile
    pictures.set(slot, [new File([made], `${kind}.png`, { type: "image/png" })]);
  } catch (problem) {
    pictures.showError("sketch", problem);
  }
}

let useNotice = null;

function notice(key, values = {}, button = null, use = null) {
  $("notice").hidden = false;
  say($("notice-text"), key, values);
  $("notice-use").hidden = !use;
  if (use) say($("notice-use"), button);
  useNotice = use;
}

/** A picture that nurie made was taken as an input: its settings may be wanted, too. */
async function offerSettings(file) {
  $("notice").hidden = true;
  if (file && (await hasSettings(file))) {
    notice("notice.has", { name: file.name }, "notice.use", () => restoreFrom(file));
  }
}

async function takeLoose(file) {
  const slot = pictures.free;
  if (await hasSettings(file)) restoreFrom(file);
  else if (slot) pictures.add(slot, [file]);
  else notice("notice.where");
}

async function hasSettings(file) {
  return (await file.text()).includes(MARK);
}

/** Take the settings out of a result. */
async function restoreFrom(file) {
  clearErrors();
  const form = new FormData();
  form.append("image", file);
  try {
    const recipe = await api.json("/v1/inspect", { method: "POST", body: form });
    controls.restore({ ...recipe.controls, seed: recipe.seed });
    notice("notice.restored", { name: file.name, seed: recipe.seed });
  } catch (problem) {
    sayProblem($("general-error"), problem);
  }
}

/** The pictures and settings of an entry, to go on from there. */
function putBack(entry, settings) {
  for (const name of ["sketch", "reference", "background", "mask"]) {
    const file = history.file(entry.inputs[name]);
    pictures.set(name, file ? [file] : []);
  }
  controls.restore(settings);
}

/* Running */

function updateRun() {
  const busy = runner.running;
  $("run").disabled = busy || !pictures.complete || !controls.built;
  $("cancel").hidden = !busy;
  $("working").hidden = !busy;
  $("vary").disabled = busy;
  $("stage").setAttribute("aria-busy", String(busy));
  say($("run-text"), busy ? "running" : "run");
}

function colour() {
  if ($("run").disabled) return;
  const count = Number($("count").value);
  begin(planEntries(history, pictures.all, controls.values(), count));
}

function vary() {
  if (runner.running) return;
  const { settings, inputs } = output.current;
  const files = Object.fromEntries(
    Object.entries(inputs).map(([name, id]) => [name, [history.file(id)]]),
  );
  begin(planEntries(history, files, { ...settings, seed: undefined }, VARIATIONS));
}

function begin(entries) {
  for (const entry of [...entries].reverse()) {
    for (const old of history.add(entry)) output.remove(old);
  }
  make(entries);
}

async function make(entries) {
  clearErrors();
  const done = runner.run(entries);
  updateRun();
  sayWorking(entries);
  say($("announce"), "announce.running", { n: entries.length });
  output.showRun(entries);
  // On a narrow screen the result lies below the button.
  $("stage").scrollIntoView({ block: "nearest" });
  await done;
  updateRun();
  finish(entries);
}

function finish(entries) {
  const made = entries.filter((entry) => entry.status === "done");
  const failed = entries.filter((entry) => entry.status === "failed");
  for (const entry of entries) if (entry.status !== "done") history.remove(entry);
  output.endRun(made, failed);
  if (failed.length > 0) showProblem(failed[0].problem);
  if (made.length > 0) say($("announce"), "announce.done", { n: made.length });
  else if (failed.length === 0) say($("announce"), "announce.cancelled");
}

/** Called whenever something happened to an entry. */
function changed(entry, entries) {
  output.update(entry);
  sayWorking(entries);
}

function sayWorking(entries) {
  const [only, ...others] = entries;
  if (others.length === 0) {
    sayState($("working-text"), only);
    showProgress($("progress"), only);
    return;
  }
  const ready = entries.filter(isOver).length;
  say($("working-text"), "state.several", { ready, all: entries.length });
  $("progress").hidden = false;
  $("progress").max = entries.length;
  $("progress").value = ready;
}

function cancel() {
  runner.cancel();
}

function showProblem(problem) {
  if (pictures.showError(problem.field, problem)) return;
  if (!controls.showError(problem.field, problem)) sayProblem($("general-error"), problem);
}

function clearErrors() {
  pictures.clearErrors();
  controls.clearErrors();
  for (const id of ["general-error", "result-error"]) hush($(id));
}

/* From a result to the next */

function reuseSeed() {
  const { seed } = output.current;
  controls.set("seed", seed);
  notice("notice.seed", { seed });
}

function reuse() {
  const { settings, seed } = output.current;
  putBack(output.current, { ...settings, seed });
  notice("notice.reused", { seed });
  $("run").focus();
}
