// The controls, built from /v1/options: the server's table is the only list.

export class Controls {
  #place;
  #rows = new Map();

  constructor(place) {
    this.#place = place;
  }

  build(controls) {
    const groups = new Map();
    for (const control of controls) {
      if (!groups.has(control.group)) groups.set(control.group, makeGroup(control.group));
      const row = makeRow(control);
      this.#rows.set(control.name, row);
      groups.get(control.group).append(row.element);
    }
    this.#place.append(...groups.values());
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
    this.#rows.get(name).write(value);
  }

  /** Set all controls as they were; one that was left to the server is left to it again. */
  restore(values) {
    for (const [name, row] of this.#rows) row.write(values[name] ?? "");
  }

  showError(name, text) {
    const row = this.#rows.get(name);
    if (!row) return false;
    row.element.classList.add("wrong");
    row.error.textContent = text;
    return true;
  }

  clearErrors() {
    for (const row of this.#rows.values()) {
      row.element.classList.remove("wrong");
      row.error.textContent = "";
    }
  }
}

function makeGroup(name) {
  const group = create("fieldset", "");
  group.append(create("legend", "", sentence(name)));
  return group;
}

function makeRow(control) {
  const element = create("div", "control");
  const label = create("label", "", titleOf(control.name));
  const input = makeInput(control);
  const help = create("p", "help", sentence(control.help));
  const error = create("p", "error");
  label.htmlFor = input.id;
  help.id = `${input.id}-help`;
  error.id = `${input.id}-error`;
  error.setAttribute("role", "alert");
  input.setAttribute("aria-describedby", `${help.id} ${error.id}`);
  element.append(label, input, help);
  const write = (value) => {
    if (control.type === "bool") input.checked = Boolean(value);
    else input.value = value;
    input.dispatchEvent(new Event("input"));
  };
  if (control.default !== null) {
    if (isNumber(control)) element.append(makeSlider(control, input));
    write(control.default);
  }
  element.append(error);
  return { element, error, write, read: () => readInput(control, input) };
}

function makeInput(control) {
  const input = document.createElement(control.choices ? "select" : "input");
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
    if (control.default === null) input.placeholder = control.name === "seed" ? "random" : "auto";
  }
  return input;
}

function makeSlider(control, input) {
  const slider = document.createElement("input");
  slider.type = "range";
  slider.min = control.minimum;
  slider.max = control.maximum;
  slider.step = stepOf(control);
  slider.setAttribute("aria-label", titleOf(control.name));
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

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function create(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}
