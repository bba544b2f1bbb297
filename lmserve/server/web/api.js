// Plain requests of the pages. What is said in conversations goes another way: connection.js.

import { askForKey, currentKey, withKey } from "./key.js";

/** A request that did not end well; `status` is 0 where no answer came at all. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** A fetch. Where the server asks for a key, so does the page; the 401 comes back if none is given. */
export async function send(path, options) {
  for (;;) {
    const key = currentKey();
    const response = await reach(path, withKey(options));
    if (response.status !== 401) return response;
    const another = currentKey() !== key; // given meanwhile, for another call
    if (!another && !(await askForKey())) return response;
  }
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch {
    throw new ApiError("The server cannot be reached.");
  }
}

async function readError(response) {
  if (response.status === 401) return new ApiError("An API key is needed to go on.", 401);
  const text = await response.text();
  try {
    const body = JSON.parse(text);
    return new ApiError(body.error?.message ?? body.message ?? text, response.status);
  } catch {
    return new ApiError(text || `The server answered ${response.status}.`, response.status);
  }
}

export async function getJson(path) {
  const response = await send(path);
  if (!response.ok) throw await readError(response);
  return response.json();
}

/** { ready, reason }: never throws. */
export async function getHealth() {
  try {
    const response = await send("/health", { cache: "no-store" });
    const body = await response.json();
    const ready = response.ok && body.status !== "sleeping"; // a distributor has its own words
    return { ready, reason: ready ? "" : body.message || "The server is not ready." };
  } catch (error) {
    const reason = error instanceof ApiError ? error.message : "The server is not ready.";
    return { ready: false, reason };
  }
}

export async function getModels() {
  return (await getJson("/v1/models")).data.map((model) => model.id);
}
