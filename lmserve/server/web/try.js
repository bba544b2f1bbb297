// The "try it" box of an operation: really sends the request and shows what comes back.

import { send } from "./api.js";
import { el } from "./dom.js";

const SHOWN_HEADERS = ["content-type", "content-length", "x-request-id", "retry-after", "allow", "server"];

function fieldOf({ name, required, file, value }) {
  const input = el("input", { name, type: file ? "file" : "text", placeholder: required ? "required" : "", value });
  return el("label", { class: "parameter" }, el("code", {}, name), input);
}

/** What was filled in of a form, as its body. */
function formData(fields, form) {
  const data = new FormData();
  for (const { name, file } of fields) {
    const input = form.elements[name];
    const value = file ? input.files[0] : input.value;
    if (value) data.append(name, value);
  }
  return data;
}

/** The path with its `{names}` filled in and the query after it. */
function fillPath(path, parameters, form) {
  const query = new URLSearchParams();
  for (const { name, in: place } of parameters) {
    const value = form.elements[name]?.value ?? "";
    if (place === "path") path = path.replace(`{${name}}`, encodeURIComponent(value));
    else if (place === "query" && value) query.set(name, value);
  }
  return query.size ? `${path}?${query}` : path;
}

function describe(response, ms) {
  const headers = SHOWN_HEADERS.filter((name) => response.headers.has(name));
  const lines = headers.map((name) => `${name}: ${response.headers.get(name)}`);
  return [`${response.status} ${response.statusText} · headers after ${Math.round(ms)} ms`, ...lines].join("\n");
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** Send, and show the answer in `head` and `body` as it arrives. */
async function exchange(path, options, head, body) {
  const started = performance.now();
  const response = await send(path, options);
  head.textContent = describe(response, performance.now() - started);
  head.dataset.ok = String(response.ok);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    body.append(part.value);
    body.scrollTop = body.scrollHeight;
  }
  if (response.headers.get("content-type")?.includes("json")) body.textContent = pretty(body.textContent);
}

export function tryBox(operation, example, formFields) {
  const parameters = operation.parameters.filter(({ in: place }) => place !== "header");
  const area = example && el("textarea", { name: "body", rows: "9", spellcheck: "false", "aria-label": "Request body" });
  if (area) area.value = JSON.stringify(example, null, 2);
  const button = el("button", { class: "button primary", type: "submit" }, "Send");
  const head = el("pre", { class: "answer-head", hidden: true });
  const body = el("pre", { class: "answer-body", hidden: true, tabindex: "0", "aria-label": "Response body" });
  let controller = null;

  const submit = async (event) => {
    event.preventDefault();
    if (controller) return controller.abort();
    controller = new AbortController();
    button.textContent = "Stop";
    head.hidden = body.hidden = false;
    head.textContent = "…";
    body.textContent = "";
    const options = { method: operation.method, signal: controller.signal, cache: "no-store" };
    if (area) Object.assign(options, { body: area.value, headers: { "Content-Type": "application/json" } });
    if (formFields) options.body = formData(formFields, form);
    try {
      await exchange(fillPath(operation.path, parameters, form), options, head, body);
    } catch (error) {
      head.append(controller.signal.aborted ? "\nstopped" : `\n${error.message}`);
    }
    controller = null;
    button.textContent = "Send";
  };
  const form = el("form", { class: "try", onsubmit: submit }, [...parameters, ...(formFields ?? [])].map(fieldOf), area, button, head, body);
  return form;
}
