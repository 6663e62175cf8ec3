// The key of the API: asked for when the server wants one, kept with the tab or in the browser.

import { hush, sayProblem } from "/web/text.js";

const $ = (id) => document.getElementById(id);

export class KeyForm {
  #given = null; // ends the question that is open

  /** Ask for a key; the promise ends when there is one to try. */
  ask(api, problem) {
    const form = $("key-form");
    form.hidden = false;
    $("change-key").hidden = true;
    if (problem.code === "key_missing") hush($("key-error"));
    else sayProblem($("key-error"), problem);
    $("key").focus();
    form.onsubmit = (event) => {
      event.preventDefault();
      const key = $("key").value.trim();
      if (!key) return;
      api.setKey(key, $("key-remember").checked);
      $("key").value = "";
      form.hidden = true;
      $("change-key").hidden = false;
      this.#given();
    };
    return new Promise((resolve) => (this.#given = resolve));
  }

  /** A button to use another key, shown where there is one. */
  offerChange(api) {
    $("change-key").hidden = !api.hasKey;
    $("change-key").addEventListener("click", () => {
      api.forgetKey();
      location.reload();
    });
  }
}
