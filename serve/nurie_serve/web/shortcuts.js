// Keys of the page, and the dialog that lists them. Letters do nothing while somebody types.

import { say } from "/web/text.js";

const $ = (id) => document.getElementById(id);

/** @param actions Functions by name: run, cancel, and those of LETTERS. */
export function listen(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      actions.run();
    } else if (event.key === "Escape") actions.cancel();
    else if (!isTyping(event)) actions[LETTERS[event.key]]?.();
  });
  $("show-help").addEventListener("click", showHelp);
  $("help-close").addEventListener("click", () => $("help").close());
}

const LETTERS = {
  ArrowLeft: "previous",
  ArrowRight: "next",
  "+": "zoomIn",
  "-": "zoomOut",
  0: "fit",
  x: "swap",
  r: "reuseSeed",
  v: "vary",
  s: "save",
  "?": "help",
};

const LISTED = {
  run: ["Ctrl + Enter"],
  cancel: ["Esc"],
  previous: ["←", "→"],
  swap: ["X"],
  zoom: ["+", "-", "0"],
  pan: ["Shift + ←↑→↓"],
  reuseSeed: ["R"],
  vary: ["V"],
  save: ["S"],
  help: ["?"],
};

export function showHelp() {
  const rows = Object.entries(LISTED).map(([name, keys]) => {
    const row = document.createElement("div");
    const term = document.createElement("dt");
    const meaning = document.createElement("dd");
    for (const key of keys) {
      const cap = document.createElement("kbd");
      cap.textContent = key;
      term.append(cap, " ");
    }
    say(meaning, `keys.${name}`);
    row.append(term, meaning);
    return row;
  });
  $("help-keys").replaceChildren(...rows);
  $("help").showModal();
}

function isTyping(event) {
  const { target, ctrlKey, metaKey, altKey, shiftKey, key } = event;
  if (ctrlKey || metaKey || altKey || (shiftKey && key.startsWith("Arrow"))) return true;
  if (target.matches("textarea, select")) return true;
  if (!target.matches("input")) return false;
  return target.type === "range" ? key.startsWith("Arrow") : target.type !== "checkbox";
}
