// What a person has set: kept in this browser, and sent with each turn.

import { el } from "./dom.js";

const KEY = "lmserve.settings";
const EMPTY = { model: "", system: "", temperature: "", top_p: "", max_tokens: "", seed: "" };
const NUMBERS = { temperature: "temperature", top_p: "top_p", max_tokens: "max_output_tokens", seed: "seed" };

function load() {
  try {
    return { ...EMPTY, ...JSON.parse(localStorage.getItem(KEY)) };
  } catch {
    return EMPTY; // damaged by hand, or storage is off
  }
}

function save(settings) {
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // the quota is used up, or storage is off: they hold for nothing then
  }
}

/** The fields of a request that were given. */
export function requestFields(models) {
  const settings = load();
  const fields = {};
  for (const [name, field] of Object.entries(NUMBERS)) {
    if (settings[name] !== "") fields[field] = Number(settings[name]);
  }
  if (settings.system.trim()) fields.instructions = settings.system.trim();
  if (models.includes(settings.model)) fields.model = settings.model;
  return fields;
}

function fill(form, settings) {
  for (const name of Object.keys(EMPTY)) form.elements[name].value = settings[name];
}

export function openSettings(dialog, models) {
  const form = dialog.querySelector("form");
  form.elements.model.replaceChildren(...models.map((model) => el("option", { value: model }, model)));
  dialog.querySelector("#model-field").hidden = models.length < 2;
  fill(form, load());
  form.onreset = (event) => {
    event.preventDefault();
    fill(form, EMPTY);
  };
  form.onsubmit = () => save(Object.fromEntries(Object.keys(EMPTY).map((name) => [name, form.elements[name].value])));
  dialog.showModal();
}
