// Reading an OpenAPI 3.1 document: references, types in words, example requests.

import { currentKey } from "./key.js";

const METHODS = ["get", "post", "put", "patch", "delete"];

export class Document {
  constructor(document) {
    this.document = document;
  }

  /** The object itself, whatever references lead to it. */
  resolve(node) {
    for (let hops = 0; node?.$ref && hops < 16; hops += 1) {
      const path = node.$ref.replace(/^#\//, "").split("/");
      node = path.reduce((at, key) => at?.[key.replaceAll("~1", "/").replaceAll("~0", "~")], this.document);
    }
    return node ?? {};
  }

  /** Operations by their tag, in the document's order: Map of tag → [operation]. */
  groups() {
    const groups = new Map();
    for (const [path, item] of Object.entries(this.document.paths ?? {})) {
      for (const method of METHODS.filter((name) => item[name])) {
        const tag = item[method].tags?.[0] ?? "other";
        const declared = [...(item.parameters ?? []), ...(item[method].parameters ?? [])];
        const parameters = declared.map((parameter) => this.resolve(parameter));
        const operation = { ...item[method], method: method.toUpperCase(), path, parameters };
        groups.set(tag, [...(groups.get(tag) ?? []), operation]);
      }
    }
    return groups;
  }

  /** The kinds a value may have; null is left out, it only says "absent". */
  options(node) {
    const all = node.anyOf ?? node.oneOf ?? [];
    return all.filter((option) => option.type !== "null");
  }

  /** A type as people say it: "array of string or string". */
  typeName(schema) {
    const name = schema?.$ref?.split("/").at(-1);
    const node = this.resolve(schema);
    const options = this.options(node);
    if (options.length) return options.map((option) => this.typeName(option)).join(" or ");
    if (node.enum) return node.enum.map((value) => JSON.stringify(value)).join(" | ");
    if ("const" in node) return JSON.stringify(node.const);
    if (node.type === "array") return `array of ${this.typeName(node.items ?? {})}`;
    if (name) return name;
    return Array.isArray(node.type) ? node.type.join(" or ") : (node.type ?? "any");
  }

  /** The object schemas behind a type, through options and arrays: each by its name. */
  objectsOf(schema) {
    const node = this.resolve(schema);
    if (node.properties) return [{ name: this.typeName(schema), schema: node }];
    if (node.type === "array") return this.objectsOf(node.items);
    return this.options(node).flatMap((option) => this.objectsOf(option));
  }

  objectOf(schema) {
    return this.objectsOf(schema)[0]?.schema ?? null;
  }

  /** Rows of a field table, required ones first, unserved ones last: name, type, required, default, description, and the objects it may be. */
  fields(schema) {
    const required = new Set(schema.required);
    const rows = Object.entries(schema.properties ?? {}).map(([name, property]) => {
      const node = this.resolve(property);
      const kinds = [node, ...this.options(node).map((option) => this.resolve(option))];
      return {
        name,
        type: this.typeName(property),
        required: required.has(name),
        default: property.default ?? node.default,
        description: property.description ?? node.description ?? "",
        objects: this.objectsOf(property),
        many: kinds.some((kind) => kind.type === "array"),
      };
    });
    const rank = (row) => (row.required ? 0 : /not (served|used)/i.test(row.description) ? 2 : 1);
    return rows.sort((a, b) => rank(a) - rank(b));
  }

  bodySchema(operation) {
    const content = this.resolve(operation.requestBody).content ?? {};
    return Object.values(content)[0]?.schema ?? null; // JSON, or a form
  }

  /** A request body to start from: the document's own example, else the required fields. */
  exampleBody(operation, samples) {
    const content = this.resolve(operation.requestBody).content?.["application/json"];
    if (!content) return null;
    const schema = this.resolve(content.schema);
    const written = content.example ?? Object.values(content.examples ?? {})[0]?.value ?? schema.examples?.[0];
    if (written) return "model" in written ? { ...written, model: samples.model } : written;
    const names = Object.keys(schema.properties ?? {});
    const wanted = names.filter((name) => schema.required?.includes(name) || name in samples);
    return Object.fromEntries(wanted.map((name) => [name, samples[name] ?? this.sample(schema.properties[name])]));
  }

  /** The inputs of a form, where the body is one: name, required, file, a value to start from. */
  formFields(operation) {
    const content = this.resolve(operation.requestBody).content?.["multipart/form-data"];
    if (!content) return null;
    const schema = this.resolve(content.schema);
    return Object.entries(schema.properties ?? {}).map(([name, property]) => {
      const file = this.resolve(property).format === "binary";
      const required = schema.required?.includes(name) ?? false;
      return { name, file, required, value: required && !file ? this.sample(property) : "" };
    });
  }

  sample(schema) {
    const node = this.resolve(schema);
    if (node.examples) return node.examples[0];
    if (node.default !== undefined) return node.default;
    if (node.enum) return node.enum[0];
    const type = this.resolve(this.options(node)[0] ?? node).type;
    return { string: "", integer: 1, number: 1, boolean: false, array: [], object: {} }[type] ?? null;
  }
}

/** The same request as a shell command. */
export function curl(method, url, body, form = null) {
  const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const words = method === "GET" ? [`curl ${url}`] : [`curl -X ${method} ${url}`];
  if (method === "POST") words[0] = `curl ${url}`;
  if (body === null && form === null && method === "POST") words.push("-X POST");
  if (body?.stream) words[0] = words[0].replace("curl", "curl -N");
  if (currentKey()) words.push('-H "Authorization: Bearer $API_KEY"');
  if (body !== null) words.push("-H 'Content-Type: application/json'", `-d ${quote(JSON.stringify(body, null, 2))}`);
  const filled = (form ?? []).filter((field) => field.required);
  words.push(...filled.map(({ name, file, value }) => `-F ${name}=${file ? "@requests.jsonl" : value}`));
  return words.join(" \\\n  ");
}
