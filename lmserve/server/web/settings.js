// The settings dialog, and what of it goes into a request.

import { el } from "./dom.js";
import { EMPTY_SETTINGS, loadSettings, saveSettings } from "./store.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

/** The sampling fields of a request: those that were given. */
export function samplingFields(settings) {
  const given = NUMBERS.filter((name) => settings[name] !== "");
  return Object.fromEntries(given.map((name) => [name, Number(settings[name])]));
}

function fill(form, settings) {
  for (const [name, value] of Object.entries(settings)) form.elements[name].value = value;
}

export function openSettings(dialog, models) {
  const form = dialog.querySelector("form");
  form.elements.model.replaceChildren(...models.map((model) => el("option", { value: model }, model)));
  dialog.querySelector("#model-field").hidden = models.length < 2;
  fill(form, loadSettings());
  form.onreset = (event) => {
    event.preventDefault();
    fill(form, EMPTY_SETTINGS);
  };
  form.onsubmit = () => {
    const names = Object.keys(EMPTY_SETTINGS);
    saveSettings(Object.fromEntries(names.map((name) => [name, form.elements[name].value])));
  };
  dialog.showModal();
}
