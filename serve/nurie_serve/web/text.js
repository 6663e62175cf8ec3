// Every text of the page in the visitor's language. Elements remember what they say (data-text)
// and what they are called (data-label), so that the language can be changed at any time.

import en from "/web/en.js";
import ja from "/web/ja.js";

const STORED_LANGUAGE = "nurie.language";
const LANGUAGES = { en, ja };

let language = localStorage.getItem(STORED_LANGUAGE) ?? navigator.language.slice(0, 2);
if (!(language in LANGUAGES)) language = "en";

export function currentLanguage() {
  return language;
}

export function setLanguage(name) {
  language = name;
  localStorage.setItem(STORED_LANGUAGE, name);
  translate();
}

/** A text; `fallback` where the language has none of its own. */
export function text(key, values = {}, fallback = null) {
  const found = LANGUAGES[language][key] ?? (fallback === null ? en[key] : fallback);
  if (typeof found === "function") return found(values);
  return found.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Let an element say a text, now and in every language to come. */
export function say(element, key, values = {}, fallback = null) {
  remember(element, { text: key, values, fallback });
  show(element);
}

/** Give an element an accessible name, likewise. */
export function label(element, key, values = {}, fallback = null) {
  remember(element, { label: key, values, fallback });
  show(element);
}

export function hush(element) {
  delete element.dataset.text;
  element.textContent = "";
}

/** A problem in words: the page's own where it has some, else the server's. */
export function sayProblem(element, problem, values = {}) {
  const detail = problem.detail ?? "";
  say(element, `problem.${problem.code}`, { ...values, detail }, sentence(detail));
}

export function translate() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-text], [data-label]")) show(element);
}

export function sentence(words) {
  return words.charAt(0).toUpperCase() + words.slice(1);
}

function remember(element, { values, fallback, ...key }) {
  Object.assign(element.dataset, key);
  element.dataset.values = JSON.stringify(values);
  if (fallback === null) delete element.dataset.fallback;
  else element.dataset.fallback = fallback;
}

function show(element) {
  const { text: said, label: called, fallback = null } = element.dataset;
  const values = JSON.parse(element.dataset.values ?? "{}");
  if (said) {
    const words = text(said, values, fallback);
    // Writing the same text again would make screen readers repeat it.
    if (element.textContent !== words) element.textContent = words;
  }
  if (called) element.setAttribute("aria-label", text(called, values, fallback));
}
