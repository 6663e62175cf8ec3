// The controls, built from /v1/options: the server's table is the only list.

import { hush, label, say, sayProblem, sentence } from "/web/text.js";

const SIMPLE = "basic"; // the server's name of the group that everybody needs

export class Controls {
  #simple;
  #advanced;
  #rows = new Map();

  constructor(simple, advanced) {
    this.#simple = simple;
    this.#advanced = advanced;
  }

  build(controls) {
    const groups = new Map([[SIMPLE, this.#simple]]);
    for (const control of controls) {
      if (!groups.has(control.group)) {
        const group = makeGroup(control.group);
        groups.set(control.group, group);
        this.#advanced.append(group);
      }
      const row = makeRow(control);
      this.#rows.set(control.name, row);
      groups.get(control.group).append(row.element);
    }
  }

  get built() {
    return this.#rows.size > 0;
  }

  /** What the visitor set; left out is what the server chooses itself. */
  values() {
    const values = {};
    for (const [name, row] of this.#rows) {
      const value = row.read();
      if (value !== null) values[name] = value;
    }
    return values;
  }

  set(name, value) {
    const row = this.#rows.get(name);
    row.write(value);
    openFold(row.element);
  }

  /** Set all controls as they were; one that was left to the server is left to it again. */
  restore(values) {
    for (const [name, row] of this.#rows) row.write(values[name] ?? "");
  }

  reset() {
    for (const row of this.#rows.values()) row.write(row.control.default ?? "");
  }

  showError(name, problem) {
    const row = this.#rows.get(name);
    if (!row) return false;
    const { minimum, maximum } = row.control;
    row.element.classList.add("wrong");
    row.input.setAttribute("aria-invalid", "true");
    sayProblem(row.error, problem, { minimum, maximum });
    openFold(row.element);
    row.input.focus();
    return true;
  }

  clearErrors() {
    for (const row of this.#rows.values()) {
      row.element.classList.remove("wrong");
      row.input.removeAttribute("aria-invalid");
      hush(row.error);
    }
  }
}

function openFold(element) {
  element.closest("details").open = true;
}

function makeGroup(name) {
  const group = create("fieldset");
  const legend = create("legend");
  say(legend, `group.${name}`, {}, sentence(name));
  group.append(legend);
  return group;
}

function makeRow(control) {
  const element = create("div", "control");
  const title = create("label");
  const input = makeInput(control);
  const help = makeHelp(control, input);
  const error = create("p", "error");
  say(title, `control.${control.name}`, {}, titleOf(control.name));
  title.id = `${input.id}-title`;
  title.htmlFor = input.id;
  help.button.setAttribute("aria-labelledby", `${help.button.id} ${title.id}`);
  error.id = `${input.id}-error`;
  error.setAttribute("role", "alert");
  input.setAttribute("aria-describedby", `${help.text.id} ${error.id}`);
  const write = (value) => {
    if (control.type === "bool") input.checked = Boolean(value);
    else input.value = value;
    input.dispatchEvent(new Event("input"));
  };
  element.append(title, help.button, input);
  if (control.default !== null) {
    if (isNumber(control)) element.append(makeSlider(control, input));
    write(control.default);
  }
  element.append(help.text, error);
  return { control, element, input, error, write, read: () => readInput(control, input) };
}

/** A question mark that shows the help; screen readers hear the help with the control. */
function makeHelp(control, input) {
  const button = create("button", "ask");
  const words = create("p", "help");
  button.type = "button";
  button.id = `${input.id}-ask`;
  button.append("?");
  words.id = `${input.id}-help`;
  words.hidden = true;
  button.setAttribute("aria-expanded", "false");
  button.setAttribute("aria-controls", words.id);
  label(button, "help.control");
  say(words, `help.${control.name}`, {}, sentence(control.help));
  button.addEventListener("click", () => {
    words.hidden = !words.hidden;
    button.setAttribute("aria-expanded", String(!words.hidden));
  });
  return { button, text: words };
}

function makeInput(control) {
  const input = create(control.choices ? "select" : "input");
  input.id = `control-${control.name}`;
  if (control.choices) {
    input.append(...control.choices.map((choice) => new Option(choice)));
  } else if (control.type === "bool") {
    input.type = "checkbox";
  } else {
    input.type = "number";
    input.min = control.minimum;
    input.max = control.maximum;
    input.step = stepOf(control);
    if (control.default === null) input.placeholder = control.name === "seed" ? "⚄" : "–";
  }
  return input;
}

function makeSlider(control, input) {
  const slider = create("input");
  slider.type = "range";
  slider.min = control.minimum;
  slider.max = control.maximum;
  slider.step = stepOf(control);
  label(slider, `control.${control.name}`, {}, titleOf(control.name));
  slider.addEventListener("input", () => (input.value = slider.value));
  input.addEventListener("input", () => (slider.value = input.value));
  return slider;
}

function readInput(control, input) {
  if (control.type === "bool") return input.checked;
  if (!isNumber(control)) return input.value;
  // What is not a number goes to the server as it is, so that its answer names the field.
  return input.value === "" && !input.validity.badInput ? null : Number(input.value || NaN);
}

function isNumber(control) {
  return control.type === "int" || control.type === "float";
}

function stepOf(control) {
  if (control.type === "int") return control.multiple_of ?? 1;
  return control.maximum - control.minimum > 5 ? 0.1 : 0.05;
}

function titleOf(name) {
  return sentence(name.replace(/^num_/, "").replaceAll("_", " "));
}

function create(tag, className = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  return element;
}
