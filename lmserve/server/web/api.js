// The transport: everything the pages know about talking to the server.

import { askForKey, currentKey, withKey } from "./key.js";

/** A request that did not end well; `status` is 0 where no answer came at all. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }

  /** Nothing was run, and the same request may pass once the server is back. */
  get unavailable() {
    return this.status === 0 || this.status === 503;
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
  } catch (error) {
    if (error.name === "AbortError") throw error;
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
    return { ready: body.status === "healthy", reason: body.message ?? "" };
  } catch (error) {
    const reason = error instanceof ApiError ? error.message : "The server is not ready.";
    return { ready: false, reason };
  }
}

export async function getModels() {
  return (await getJson("/v1/models")).data.map((model) => model.id);
}

/** The `data` of each server-sent event in a response body. */
async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer = (buffer + value).replaceAll("\r\n", "\n");
    const events = buffer.split("\n\n");
    buffer = events.pop();
    for (const event of events) {
      const lines = event.split("\n").filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}

/**
 * One chat answer as it is written: yields { text, finishReason, usage }, each where present.
 * Aborting `signal` closes the connection, which cancels the answer in the server.
 */
export async function* streamChat(request, signal) {
  const response = await send("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw await readError(response);
  let finishReason = null;
  try {
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message, 500);
      const choice = chunk.choices?.[0];
      finishReason = choice?.finish_reason ?? finishReason;
      yield { text: choice?.delta?.content ?? "", finishReason, usage: chunk.usage ?? null };
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("The connection broke before the answer was complete.");
  }
  if (!finishReason) throw new ApiError("The connection ended before the answer was complete.");
}
