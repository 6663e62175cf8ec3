// The page: choose pictures, run, compare. All text comes in as text nodes, never as HTML.

import { Controls } from "/web/controls.js";
import { Pictures } from "/web/pictures.js";
import { Result } from "/web/result.js";

const RETRIES = 5;

const $ = (id) => document.getElementById(id);
const pictures = new Pictures(updateRun);
const controls = new Controls($("controls"));
const result = new Result();
let running = null; // AbortController of the request under way

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
$("cancel").addEventListener("click", cancel);
$("reuse-seed").addEventListener("click", () => {
  controls.set("seed", result.current.seed);
  $("advanced").open = true;
});
$("reuse-settings").addEventListener("click", () => {
  controls.restore(result.current.settings);
  $("advanced").open = true;
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    run();
  } else if (event.key === "Escape") {
    cancel();
  }
});
start();

async function start() {
  watchReadiness();
  try {
    const [options, examples] = await Promise.all([json("/v1/options"), json("/v1/examples")]);
    controls.build(options.controls);
    showExamples(examples.examples);
  } catch {
    showGeneralError("The server does not answer. Reload the page in a moment.");
  }
}

async function json(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

async function watchReadiness() {
  let model = null;
  for (;;) {
    try {
      if (!(await fetch("/readyz")).ok) throw new Error();
      if (!model) {
        [model] = (await json("/v1/models")).models;
        $("status").title = `${model.name} on ${model.device}`;
      }
      setStatus("ready", "ready");
    } catch {
      setStatus("down", "starting");
    }
    await pause(model ? 15000 : 1500);
  }
}

function setStatus(kind, text) {
  const status = $("status");
  status.className = `status ${kind}`;
  // Writing the same text again would make screen readers repeat it.
  if (status.textContent !== text) status.textContent = text;
}

function showExamples(examples) {
  for (const example of examples) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Use the example ${example.name.replace("-", " ")}`);
    for (const address of [example.sketch, example.reference]) {
      const image = document.createElement("img");
      image.src = address;
      image.alt = "";
      button.append(image);
    }
    button.addEventListener("click", () => useExample(example));
    $("examples-strip").append(button);
  }
  $("examples").hidden = examples.length === 0;
}

async function useExample(example) {
  for (const name of ["sketch", "reference"]) {
    const blob = await (await fetch(example[name])).blob();
    pictures.set(name, new File([blob], `${example.name}-${name}.png`, { type: blob.type }));
  }
  if (!running) $("run").focus({ preventScroll: true });
}

function updateRun() {
  $("run").disabled = Boolean(running) || !pictures.complete;
}

async function run() {
  if (running || !pictures.complete) return;
  clearErrors();
  running = new AbortController();
  const settings = controls.values();
  const sketch = pictures.file("sketch");
  setRunning(true);
  try {
    const response = await send(settings, running.signal);
    if (response.ok) {
      result.add(await response.blob(), sketch, response.headers.get("X-Seed"), settings);
    } else {
      showProblem(await response.json());
    }
  } catch (error) {
    if (error.name !== "AbortError") showGeneralError("The connection was lost. Try again.");
  } finally {
    running = null;
    setRunning(false);
  }
}

/** Post the form; a full queue or a restarting model is waited for as long as the server says. */
async function send(settings, signal) {
  for (let attempt = 1; ; attempt++) {
    const form = new FormData();
    pictures.appendTo(form);
    form.append("params", JSON.stringify(settings));
    const response = await fetch("/v1/colorize", { method: "POST", body: form, signal });
    const wait = Number(response.headers.get("Retry-After"));
    if (response.ok || !wait || attempt > RETRIES) return response;
    const { code } = await response.clone().json();
    if (code === "deadline_exceeded") return response;
    $("working-text").textContent = "The server is busy, trying again";
    await pause(wait * 1000, signal);
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("cancelled", "AbortError"));
    });
  });
}

function cancel() {
  running?.abort();
}

function setRunning(on) {
  $("cancel").hidden = !on;
  $("working").hidden = !on;
  $("stage").setAttribute("aria-busy", String(on));
  updateRun();
  if (!on) return;
  $("working-text").textContent = "Colouring";
  $("announce").textContent = "Colouring";
  // On a narrow screen the result lies below the button.
  $("stage").scrollIntoView({ block: "nearest", behavior: "smooth" });
  const begin = performance.now();
  const mine = running;
  const tick = () => {
    if (running !== mine) return;
    $("elapsed").textContent = `${((performance.now() - begin) / 1000).toFixed(1)} s`;
    requestAnimationFrame(tick);
  };
  tick();
}

function showProblem(problem) {
  const inFold = controls.showError(problem.field, problem.detail);
  if (inFold) $("advanced").open = true;
  if (!inFold && !pictures.showError(problem.field, problem.detail)) {
    showGeneralError(problem.detail);
  }
}

function showGeneralError(text) {
  $("general-error").textContent = text;
}

function clearErrors() {
  pictures.clearErrors();
  controls.clearErrors();
  showGeneralError("");
}
