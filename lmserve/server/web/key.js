// The API key, on servers that ask for one: given in a dialog, kept in this tab, sent with calls.

import { el } from "./dom.js";

const KEY = "lmserve.key";
let asking = null; // the open dialog: one, however many calls wait for it

export function currentKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

/** The options of a fetch, with the key where there is one. */
export function withKey(options = {}) {
  const key = currentKey();
  if (!key) return options;
  return { ...options, headers: { ...options.headers, Authorization: `Bearer ${key}` } };
}

/** Whether a key was given. */
export function askForKey() {
  asking ??= ask().finally(() => (asking = null));
  return asking;
}

function ask() {
  const told = currentKey()
    ? "This key is not known to the server. Check it, or ask whoever runs the server."
    : "This server answers only to those who have a key. Whoever runs it can give you one.";
  const attributes = { type: "password", autocomplete: "off", spellcheck: "false", required: true };
  const input = el("input", { ...attributes, pattern: "[!-~]+", title: "Letters, digits and signs, without spaces" });
  input.addEventListener("input", () => (input.value = input.value.trim()));
  const dialog = el("dialog", { id: "key", "aria-labelledby": "key-title" },
    el("form", { method: "dialog" },
      el("h2", { id: "key-title" }, "API key"),
      el("p", { class: "told" }, told),
      el("label", {}, "Key", input),
      el("p", { class: "hint" }, "Kept in this tab until it is closed, and sent to this server only."),
      el("div", { class: "dialog-actions" },
        el("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Cancel"),
        el("button", { class: "button primary", type: "submit", value: "go" }, "Continue"))));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "go";
      if (given) sessionStorage.setItem(KEY, input.value);
      dialog.remove();
      resolve(given);
    });
  });
}
