// The documentation page: the server's state, a quick start, and every operation of /openapi.json.

import { getHealth, getJson, getModels } from "./api.js";
import { codeBlock, el } from "./dom.js";
import { currentKey } from "./key.js";
import { curl, Document } from "./openapi.js";
import { tryBox } from "./try.js";

const MAX_DEPTH = 3; // objects inside objects shown in a field table
const RETRY_HEALTH_MS = 1000;
const origin = location.origin;
const byId = (id) => document.getElementById(id);

// ---- quick start ---------------------------------------------------------------------

function showSnippets(model) {
  const messages = [{ role: "user", content: "Hello!" }];
  const python = `from openai import OpenAI

client = OpenAI(
    base_url="${origin}/v1",
    api_key="${currentKey() ? "YOUR KEY" : "none"}",
)
answer = client.chat.completions.create(
    model="${model}",
    messages=[{"role": "user", "content": "Hello!"}],
)
print(answer.choices[0].message.content)`;
  const shell = curl("POST", `${origin}/v1/chat/completions`, { model, messages });
  byId("snippets").replaceChildren(codeBlock(shell, "curl"), codeBlock(python, "Python · pip install openai"));
}

/** Follow /health until the server is ready; gives the model's name. */
async function awaitModel() {
  for (;;) {
    const health = await getHealth();
    byId("dot").dataset.ready = String(health.ready);
    if (health.ready) break;
    byId("state").textContent = health.reason;
    await new Promise((resolve) => setTimeout(resolve, RETRY_HEALTH_MS));
  }
  const [model] = await getModels();
  byId("state").replaceChildren("Serving ", el("strong", {}, model), ` at ${origin}`);
  return model;
}

// ---- operations ----------------------------------------------------------------------

function fieldRows(api, schema, prefix = "", depth = 0) {
  return api.fields(schema).flatMap((field) => {
    const name = prefix + field.name;
    const notes = [field.required && "required", field.default != null && `default ${JSON.stringify(field.default)}`];
    const row = el("tr", {},
      el("td", {}, el("code", {}, name)),
      el("td", { class: "type" }, field.type),
      el("td", {}, prose(field.description), el("span", { class: "note" }, notes.filter(Boolean).join(" · "))));
    return [row, ...(depth < MAX_DEPTH ? innerRows(api, field.objects, name + (field.many ? "[]" : ""), depth + 1) : [])];
  });
}

/** The fields of what a field holds. Where that is one of several kinds, each comes under its name. */
function innerRows(api, objects, name, depth) {
  return objects.flatMap((object) => {
    const kind = el("tr", { class: "kind" }, el("td", {}, el("code", {}, name)), el("td", { class: "type" }, object.name), el("td"));
    return [objects.length > 1 ? kind : null, ...fieldRows(api, object.schema, `${name}.`, depth)].filter(Boolean);
  });
}

/** Text with its `code` shown as code. */
function prose(text) {
  return text.split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));
}

function fieldTable(rows) {
  const head = ["Field", "Type", "Meaning"].map((name) => el("th", { scope: "col" }, name));
  return el("div", { class: "scroll-x" }, el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows)));
}

function parameterTable(api, parameters) {
  const required = parameters.filter((parameter) => parameter.required).map(({ name }) => name);
  const properties = parameters.map(({ name, schema, description }) => [name, { ...schema, description }]);
  return fieldTable(fieldRows(api, { required, properties: Object.fromEntries(properties) }));
}

function responseRow(api, status, node) {
  const response = api.resolve(node);
  const types = Object.entries(response.content ?? {});
  const objects = types.map(([, media]) => media.schema && api.objectOf(media.schema)).filter(Boolean);
  const told = types.map(([type, media]) => (media.schema ? `${type} · ${api.typeName(media.schema)}` : type));
  const summary = el("summary", {},
    el("code", { class: "status", "data-class": status[0] }, status), prose(response.description ?? ""),
    el("span", { class: "note" }, told.join(", ")));
  return el("details", { class: "response" }, summary, objects.map((object) => fieldTable(fieldRows(api, object))));
}

function part(title, ...content) {
  return [el("h4", {}, title), ...content];
}

function operationId({ method, path }) {
  return `${method.toLowerCase()}${path.replaceAll(/[^\w]+/g, "-")}`;
}

function operationBody(api, operation, samples) {
  const schema = api.bodySchema(operation);
  const example = api.exampleBody(operation, samples);
  const form = api.formFields(operation);
  const canStream = "stream" in (api.objectOf(schema)?.properties ?? {});
  const streamed = canStream ? { ...example, stream: true } : example; // watch it being written
  const responses = Object.entries(operation.responses ?? {});
  return [
    operation.description && el("p", {}, prose(operation.description)),
    operation.parameters.length ? part("Parameters", parameterTable(api, operation.parameters)) : null,
    part("Example", codeBlock(curl(operation.method, origin + operation.path, example, form), "curl")),
    part("Try it", tryBox(operation, streamed, form)),
    schema ? part("Body", fieldTable(fieldRows(api, api.objectOf(schema) ?? {}))) : null,
    part("Responses", responses.map(([status, node]) => responseRow(api, status, node))),
  ].flat(2).filter(Boolean);
}

/** A closed operation costs one line; its contents are built when it is first opened. */
function operationNode(api, operation, samples) {
  const { method, path, summary } = operation;
  const node = el("details", { class: "operation", id: operationId(operation) },
    el("summary", {}, el("span", { class: "method", "data-method": method }, method),
      el("code", { class: "path" }, path), el("span", { class: "summary" }, summary ?? "")));
  const fill = () => node.append(el("div", { class: "operation-body" }, operationBody(api, operation, samples())));
  node.addEventListener("toggle", fill, { once: true });
  return node;
}

function showOperations(api, samples) {
  const title = (tag) => tag[0].toUpperCase() + tag.slice(1);
  for (const [tag, operations] of api.groups()) {
    byId("operations").append(el("section", {}, el("h2", {}, title(tag)),
      operations.map((operation) => operationNode(api, operation, samples))));
    byId("nav").append(el("h2", {}, title(tag)), el("ul", {}, operations.map((operation) =>
      el("li", {}, el("a", { href: `#${operationId(operation)}` },
        el("span", { class: "method", "data-method": operation.method }, operation.method), operation.path)))));
  }
}

/** Links to what this server has. Where it asks for a key, which a link cannot bring, to "Try it". */
function showLinks(api) {
  for (const link of document.querySelectorAll(".links [data-keyed]")) {
    const path = link.getAttribute("href");
    link.hidden = !(path in api.document.paths);
    if (currentKey()) link.href = `#${operationId({ method: "GET", path })}`;
  }
}

function openTarget() {
  const target = document.getElementById(location.hash.slice(1));
  if (!(target instanceof HTMLDetailsElement)) return;
  target.open = true;
  target.scrollIntoView();
}

// ---- start ---------------------------------------------------------------------------

async function showDocument(samples) {
  try {
    const api = new Document(await getJson("/openapi.json"));
    showOperations(api, samples);
    showLinks(api);
    openTarget();
    window.addEventListener("hashchange", openTarget);
  } catch (error) {
    byId("problem").textContent = `The API description, /openapi.json, cannot be shown: ${error.message}`;
    byId("problem").hidden = false;
  }
}

function showLocked() {
  const again = el("button", { class: "button", type: "button", onclick: () => location.reload() }, "Enter the key");
  byId("state").replaceChildren("This server asks for an API key. ", again);
  showSnippets("MODEL");
}

async function start() {
  let model;
  try {
    [model] = await getModels();
  } catch (error) {
    if (error.status === 401) return showLocked();
    // else none yet: it is loading
  }
  const samples = {
    model: model ?? "MODEL",
    messages: [{ role: "user", content: "Hello!" }],
    prompt: "Once upon a time",
    max_tokens: 64,
    stream: true,
  };
  showSnippets(samples.model);
  await showDocument(() => samples);
  samples.model = await awaitModel();
  showSnippets(samples.model);
}

start();
