// The API page: /openapi.json as something to read. No script of another origin is needed.

const document_ = await (await fetch("/openapi.json")).json();
document.getElementById("summary").textContent = document_.info.summary;
document.getElementById("call").textContent =
  `curl -F sketch=@sketch.png -F reference=@reference.png -F seed=1 -o result.png \\\n` +
  `     ${location.origin}/v1/colorize`;
for (const [path, methods] of Object.entries(document_.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    document.getElementById("endpoints").append(describe(method, path, operation));
  }
}

function describe(method, path, operation) {
  const article = create("article");
  const title = create("h2");
  title.append(create("span", method.toUpperCase(), "method"), create("code", path));
  article.append(title, create("p", operation.description ?? operation.summary));
  for (const [kind, { schema }] of Object.entries(operation.requestBody?.content ?? {})) {
    article.append(table(["Field", kind, "Range", "Default"], fields(schema)));
  }
  const answers = Object.entries(operation.responses)
    .filter(([, answer]) => answer.description !== "Validation Error")
    .map(([status, answer]) => [status, answer.description]);
  article.append(table(["Status", "Meaning"], answers));
  return article;
}

function fields(schema) {
  return Object.entries(schema.properties).map(([name, field]) => [
    schema.required.includes(name) ? `${name} *` : name,
    field.description,
    field.minimum === undefined ? "" : `${field.minimum} to ${field.maximum}`,
    field.default ?? "",
  ]);
}

function table(head, rows) {
  const wrapper = create("div", "", "scroll");
  const element = create("table");
  for (const [cells, tag] of [[head, "th"], ...rows.map((row) => [row, "td"])]) {
    const row = element.insertRow();
    row.append(...cells.map((cell) => create(tag, String(cell))));
  }
  wrapper.append(element);
  return wrapper;
}

function create(tag, text = "", className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}
