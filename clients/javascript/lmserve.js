// @ts-check
/**
 * A client of lmserve for browsers and Node (22 or later): conversations that the server keeps, over
 * one WebSocket that mends itself. One file that needs nothing.
 *
 *     const client = new Lmserve({ url: "http://127.0.0.1:23333" });
 *     const session = await client.sessions.create({ title: "Capitals" });
 *     const answer = await client.respond({ input: "Of France?", session });
 *     for await (const piece of answer) console.log(piece);
 *     client.close();
 *
 * Fields of requests, and all that comes back, have the names that they have on the wire.
 *
 *     lost ─► wait a little longer each time ─► connect ─► each answer: `session.resume` after its
 *     last event, or `response.create` again, with the same idempotency_key, where none came ─►
 *     each call without an answer again, if it may be ─► go on
 *
 * @typedef {{ [name: string]: any }} Item  A JSON object.
 *
 * @typedef {object} Session
 * @property {string} id
 * @property {string | null} title
 * @property {number} created_at  Unix time.
 * @property {number} used_at
 * @property {string | null} head  The message after which the next turn goes on.
 * @property {number} num_messages  In all branches.
 * @property {number} num_tokens
 * @property {string[]} [running]  The responses that are being made.
 *
 * @typedef {object} Message
 * @property {string} id
 * @property {string | null} parent  The message it follows; null: it begins the tree.
 * @property {string} role
 * @property {any} content  A string, or a list of parts.
 * @property {number} created_at
 * @property {number} line_tokens  From the root up to here.
 * @property {string[]} [siblings]  All with the same parent; not in a whole tree.
 *
 * @typedef {object} Response  As OpenAI's, and where it is in its session's tree.
 * @property {string} id
 * @property {"queued" | "in_progress" | "completed" | "incomplete" | "failed" | "cancelled"} status
 * @property {{ reason: string } | null} incomplete_details
 * @property {Item | null} error
 * @property {Item[]} output
 * @property {string} session
 * @property {string | null} message_id
 * @property {string[]} input_message_ids
 * @property {string | null} previous_response_id
 * @property {Item | null} usage
 *
 * @typedef {Item & { type: string, sequence_number: number }} ServerEvent
 *
 * @typedef {object} Steered  What was said in mid-answer is being answered.
 * @property {string} steer_id
 * @property {string} response_id  What was stopped.
 * @property {string | null} successor_id  What goes on; null: it waits for a tool's output.
 * @property {number | null} token_index  Tokens of the stopped answer that were kept.
 *
 * @typedef {string | { id: string }} Named  An object that has an id, or the id itself.
 *
 * @typedef {object} Options
 * @property {string} [url]  Default, in a browser: where its page came from.
 * @property {string | null} [apiKey]
 * @property {"subprotocol" | "event"} [keyIn]  What of a WebSocket brings the key.
 * @property {number} [reconnectWithinMs]  A longer outage ends what runs with an error.
 * @property {number} [silenceMs]  After twice this long without a sound a connection is lost.
 * @property {boolean} [websocket]  false: over HTTP from the beginning.
 * @property {(state: "connecting" | "connected" | "http" | "closed") => void} [onConnection]
 *
 * @typedef {object} Respond
 * @property {string | Item[]} [input]
 * @property {Named} [session]  Its next turn.
 * @property {Named} [previous]  The answer that this follows; two may follow the same.
 * @property {Named} [after]  The message that the input follows.
 * @property {Named} [edit]  The message whose place the input takes.
 * @property {Named} [regenerate]  The answer to make again.
 * @property {Named} [continue]  The answer to go on with, where it stopped.
 * @property {string} [instructions]
 * @property {string} [model]
 * @property {number} [temperature]
 * @property {number} [top_p]
 * @property {number} [max_output_tokens]
 * @property {string | string[]} [stop]
 * @property {number} [seed]
 * @property {number} [priority]
 * @property {number} [deadline_s]
 * @property {boolean} [background]
 * @property {boolean} [store]
 * @property {boolean} [generate]
 * @property {string} [idempotency_key]
 * @property {(event: ServerEvent) => void} [onEvent]  Gets each event of the answer as it comes.
 */

const FIRST_DELAY_MS = 100;
const MOST_DELAY_MS = 5_000;
const POLL_MS = 500;
const DEBOUNCE_MS = 150;
const MAX_REFUSALS = 3; // sockets in a row that told nothing
const MAX_LANES = 32; // on one connection, as the server has it; more answers go over HTTP
const FAULTS = [1002, 1003, 1007, 1009]; // closed for what was sent: no use to try again
const DENIED = 1008;
const SUCCESSOR_MS = 2_000; // after the end of an answer that was steered, until it is looked for
const DOUBT_MS = 5_000; // until it is told that nobody knows of an input whether it was taken on
const MAX_LOOKS = 10;
const INTERRUPTIONS = ["server_restart", "server_shutdown", "abandoned", "deadline"];
const DELTA = "response.output_text.delta";

// --- errors -------------------------------------------------------------------------------

/** Whatever went wrong. `status` is 0 where no answer came at all. */
export class LmserveError extends Error {
  /** @param {string} message @param {number} [status] @param {Item} [said] */
  constructor(message, status = 0, said = {}) {
    super(message);
    this.name = new.target.name;
    this.status = status;
    /** @type {string | null} */
    this.code = said.code ?? null;
    /** @type {string | null} The field at fault. */
    this.param = said.param ?? null;
    /** @type {string | null} */
    this.type = said.type ?? null;
    /** @type {number | null} When to come back, in seconds. */
    this.retryAfter = Number(said.headers?.["Retry-After"] ?? NaN) || null;
  }
}

/** No connection could be made, or it broke. */
export class ConnectionLost extends LmserveError {}

/** The answer failed. */
export class AnswerFailed extends LmserveError {}

/** The server cut the answer short: it was restarted, say. Go on with `continue: error.response`. */
export class AnswerInterrupted extends LmserveError {
  /** @param {Response} response */
  constructor(response) {
    const reason = response.incomplete_details?.reason ?? "";
    super(`the answer ${response.id} was interrupted: ${reason}`, 0, { code: reason });
    this.response = response;
    this.reason = reason;
  }
}

/** What was said in mid-answer could not be taken on: `input` is it. */
export class SteerFailed extends LmserveError {
  /** @param {string} message @param {string | null} code @param {any} input */
  constructor(message, code, input) {
    super(message, 0, { code });
    this.input = input;
  }
}

/** @param {number} status @param {any} body @param {string | null} [retryAfter] */
function refusal(status, body, retryAfter = null) {
  const said = typeof body?.error === "object" ? body.error : body;
  const message = said?.message ?? `the server answered ${status}`;
  const headers = retryAfter ? { "Retry-After": retryAfter } : said?.headers;
  return new LmserveError(String(message), status, { ...said, headers });
}

const closed = () => new ConnectionLost("the client was closed");
const unknown = () =>
  new ConnectionLost("the connection broke: perhaps the input was taken on, perhaps not");

// --- small things -------------------------------------------------------------------------

/** @param {any} named */
const idOf = (named) => (typeof named === "string" ? named : named.id);

/** The fields that were given. @param {Item} fields */
const given = (fields) =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => (value ?? null) !== null));

/**
 * Shorter than a server's own, in which a distributor would look for the node that gave it.
 * @param {string} prefix
 */
function newId(prefix) {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return prefix + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The text of a response. @param {Response | Item} response */
export function textOf(response) {
  const parts = (response.output ?? []).flatMap((/** @type {Item} */ item) => item.content ?? []);
  const texts = parts.filter((/** @type {Item} */ part) => part.type === "output_text");
  return texts.map((/** @type {Item} */ part) => part.text).join("");
}

/**
 * @template T
 * @typedef {object} Deferred
 * @property {Promise<T>} promise
 * @property {(value: T) => void} resolve
 * @property {(error: Error) => void} reject
 */

/** @template T @returns {Deferred<T>} */
function defer() {
  /** @type {any} */
  const deferred = {};
  deferred.promise = new Promise((resolve, reject) => Object.assign(deferred, { resolve, reject }));
  deferred.promise.catch(() => {}); // an error that nobody awaits is no fault of the program
  return deferred;
}

/** How long to wait before a connection is tried again. */
class Backoff {
  /** @param {number} withinMs */
  constructor(withinMs) {
    this.withinMs = withinMs;
    this.began = 0;
    this.failures = 0;
  }

  reset() {
    this.failures = 0;
  }

  /** After a failure: milliseconds to wait; null: it has been tried for long enough. */
  next() {
    if (this.failures === 0) this.began = Date.now();
    this.failures += 1;
    if (Date.now() - this.began > this.withinMs) return null;
    if (this.failures === 1) return 0; // most often the network changed, and the server is there
    const delay = Math.min(MOST_DELAY_MS, FIRST_DELAY_MS * 2 ** (this.failures - 2));
    return delay * (0.5 + Math.random() / 2); // not all clients of a server at once
  }
}

/** Waits that end when their owner is closed, or the browser has a network again. */
class Pauses {
  constructor() {
    /** @type {Set<() => void>} */
    this.pending = new Set();
    this.wake = () => [...this.pending].forEach((end) => end());
    globalThis.addEventListener?.("online", this.wake);
  }

  /** @param {number} ms @returns {Promise<void>} */
  pause(ms) {
    return new Promise((resolve) => {
      const end = () => {
        clearTimeout(timer);
        this.pending.delete(end);
        resolve();
      };
      const timer = setTimeout(end, ms);
      this.pending.add(end);
    });
  }

  close() {
    globalThis.removeEventListener?.("online", this.wake);
    this.wake();
  }
}

// --- what may be asked beside answers -----------------------------------------------------

/**
 * @typedef {object} Verb
 * @property {string} type  Of the WebSocket's event.
 * @property {string} method
 * @property {string} path
 * @property {boolean} [once]  Not asked again where its answer was lost.
 */

/** @param {string} type @param {string} method @param {string} path @returns {Verb} */
const verb = (type, method, path) => ({ type, method, path, once: type === "session.append" });

const VERBS = {
  create: verb("session.create", "POST", "/v1/sessions"),
  list: verb("session.list", "GET", "/v1/sessions"),
  get: verb("session.get", "GET", "/v1/sessions/{session}"),
  update: verb("session.update", "POST", "/v1/sessions/{session}"),
  delete: verb("session.delete", "DELETE", "/v1/sessions/{session}"),
  messages: verb("session.messages", "GET", "/v1/sessions/{session}/messages"),
  append: verb("session.append", "POST", "/v1/sessions/{session}/messages"),
  fork: verb("session.fork", "POST", "/v1/sessions/{session}/fork"),
  export: verb("session.export", "GET", "/v1/sessions/{session}/export"),
  import: verb("session.import", "POST", "/v1/sessions/import"),
  draft: verb("session.draft", "POST", "/v1/sessions/{session}/draft"),
  cancelSession: verb("session.cancel", "POST", "/v1/sessions/{session}/cancel"),
  cancel: verb("session.cancel", "POST", "/v1/responses/{response_id}/cancel"),
  change: verb("session.update", "POST", "/v1/responses/{response_id}"),
};

/**
 * What a second try is answered, where the first was done and its answer lost.
 * @param {Verb} verb @param {Item} fields @param {LmserveError} error @returns {Item | null}
 */
function doneBefore(verb, fields, error) {
  const gone = verb === VERBS.delete && error.code === "session_not_found";
  return gone ? { id: fields.session, object: "session.deleted", deleted: true } : null;
}

// --- one answer as it comes ---------------------------------------------------------------

/** One input said in mid-answer. */
class Steering {
  /** @param {string} responseId @param {any} input */
  constructor(responseId, input) {
    this.responseId = responseId;
    this.input = input;
    this.sent = false; // perhaps the server has it
    /** @type {string | null} Once the server owns it: it is not sent again. */
    this.id = null;
    /** @type {Deferred<Steered>} */
    this.settled = defer();
  }
}

/**
 * An answer's events in order, each once, whichever connections brought them. It outlives
 * connections: the number of its last event says where the next goes on. Where the answer is
 * steered, its successor follows on the same lane, numbered from 0 again.
 */
class Lane {
  /** @param {string} id @param {Item} body @param {string | null} [responseId] */
  constructor(id, body, responseId = null) {
    this.id = id;
    this.body = body; // of the request; its idempotency_key makes it safe to send again
    this.responseId = responseId; // null: nothing was acknowledged yet
    this.last = -1;
    /** @type {ServerEvent[]} All of them. */
    this.events = [];
    /** @type {string[]} */
    this.ids = [];
    /** @type {Response | null} As it was told last. */
    this.response = null;
    this.over = false; // its last event has come; a successor may follow
    this.ended = false; // nothing follows
    /** @type {LmserveError | null} Why it ended without a last event. */
    this.error = null;
    /** @type {Steering[]} Unsettled, in the order of their sending. */
    this.steers = [];
    /** @type {((event: ServerEvent) => void) | undefined} */
    this.onEvent = undefined;
    this.text = ""; // of the response that is being told
    this.ahead = defer();
  }

  /** Settles at the next event or at the end. @returns {Promise<unknown>} */
  changed() {
    return this.ahead.promise;
  }

  /** An event; one that has come before is passed over. @param {Item} item */
  take(item) {
    if (this.ended) return;
    const number = item.sequence_number;
    if (item.type === "response.created" && item.response.id !== this.responseId) {
      this.begin(item.response.id);
    } else if (item.type === "response.steer.failed" && !item.steer.id) {
      this.onSteerFailed(item); // told to the asker alone: it has no place in the stream
      return;
    }
    if (number > this.last) this.keep(/** @type {ServerEvent} */ (item));
  }

  /**
   * The answer as it is by now, from where its events can no longer be had: what is new of its
   * text, and its end.
   * @param {Response} response
   */
  takeWhole(response) {
    if (this.ended || this.over) return;
    const whole = textOf(response);
    if (whole.length > this.text.length && whole.startsWith(this.text)) {
      this.make(DELTA, { delta: whole.slice(this.text.length) });
    }
    const { status } = response;
    if (status === "queued" || status === "in_progress") this.response = response;
    else this.make(`response.${status === "cancelled" ? "incomplete" : status}`, { response });
  }

  /** @param {string} responseId */
  begin(responseId) {
    this.responseId = responseId;
    this.last = -1;
    this.over = false;
    this.text = "";
  }

  /** @param {LmserveError} error */
  fail(error) {
    if (this.ended) return;
    this.error = error;
    this.end();
  }

  /** Unless the server owns it by now. @param {Steering} steering @param {Error} error */
  giveUp(steering, error) {
    const at = this.steers.indexOf(steering);
    if (at < 0 || steering.id) return;
    this.steers.splice(at, 1);
    steering.settled.reject(error);
  }

  end() {
    this.ended = true;
    for (const { settled, input } of this.steers) {
      const code = "response_already_completed";
      settled.reject(this.error ?? new SteerFailed("the answer had ended before", code, input));
    }
    this.steers = [];
    this.tell();
  }

  tell() {
    const { resolve } = this.ahead;
    this.ahead = defer();
    resolve(undefined);
  }

  /** @param {string} type @param {Item} fields */
  make(type, fields) {
    this.keep({ type, sequence_number: this.last + 1, ...fields });
  }

  /** @param {ServerEvent} event */
  keep(event) {
    this.last = event.sequence_number;
    if (event.type === "response.created") this.ids.push(event.response.id);
    if (event.type === DELTA) this.text += event.delta;
    this.events.push(event);
    this.onEvent?.(event);
    this.react(event);
    this.tell();
  }

  /** @param {ServerEvent} event */
  react(event) {
    if (event.response) this.response = event.response;
    switch (event.type) {
      case "response.completed":
      case "response.incomplete":
      case "response.failed":
        return this.onEnd();
      case "error": // a stream that broke
        return this.fail(refusal(0, event));
      case "response.steer.accepted": {
        const steering = this.steers.find((one) => !one.id);
        if (steering) steering.id = event.steer.id;
        return;
      }
      case "response.steer.pending": {
        const { id, previous_response_id } = event.steer;
        return this.settle(id, {
          steer_id: id,
          response_id: previous_response_id,
          successor_id: null,
          token_index: null,
        });
      }
      case "response.steer.failed":
        return this.onSteerFailed(event);
      case "session.steer.applied": {
        const { steer_id, response_id, successor_id, token_index } = event;
        return this.settle(steer_id, { steer_id, response_id, successor_id, token_index });
      }
    }
  }

  /** A successor follows where it was steered, or owns input that it will answer. */
  onEnd() {
    this.over = true;
    const steered = this.response?.incomplete_details?.reason === "steered";
    if (!steered && !this.steers.some((steering) => steering.id)) this.end();
  }

  /** @param {string} id @param {Steered} steered */
  settle(id, steered) {
    const steering = this.steers.find((one) => one.id === id || !one.id);
    if (!steering) return;
    this.steers.splice(this.steers.indexOf(steering), 1);
    steering.settled.resolve(steered);
  }

  /** @param {Item} event */
  onSteerFailed({ steer, error }) {
    const steering = this.steers.find((one) => one.id === (steer.id ?? null) || !one.id);
    if (steering) {
      this.steers.splice(this.steers.indexOf(steering), 1);
      steering.settled.reject(new SteerFailed(error.message, error.code ?? null, steering.input));
    }
    if (this.over) this.onEnd();
  }
}

// --- over HTTP ----------------------------------------------------------------------------

/** For whoever cannot have a WebSocket, and where one cannot help. */
class Rest {
  /** @param {string} url @param {string | null} apiKey @param {number} withinMs */
  constructor(url, apiKey, withinMs) {
    this.url = url;
    /** @type {Record<string, string>} */
    this.headers = apiKey ? { Authorization: `Bearer ${apiKey}` } : {};
    this.withinMs = withinMs;
    this.pauses = new Pauses();
    this.aborter = new AbortController();
  }

  close() {
    this.aborter.abort();
    this.pauses.close();
  }

  /** @param {Verb} verb @param {Item} fields @returns {Promise<any>} */
  async call(verb, fields) {
    const rest = { ...fields };
    const path = verb.path.replace(/\{(\w+)\}/, (_, name) => {
      const value = encodeURIComponent(rest[name]);
      delete rest[name];
      return value;
    });
    const backoff = new Backoff(this.withinMs);
    for (let tries = 1; ; tries += 1) {
      try {
        return await this.once(verb.method, path, rest);
      } catch (error) {
        const lost = error instanceof ConnectionLost && !verb.once && !this.aborter.signal.aborted;
        const done =
          tries > 1 && error instanceof LmserveError ? doneBefore(verb, fields, error) : null;
        if (done) return done;
        const delay = lost ? backoff.next() : null;
        if (delay === null) throw error;
        await this.pauses.pause(delay);
      }
    }
  }

  /** Brings a lane all its events, over as many connections as it takes. @param {Lane} lane */
  async follow(lane) {
    const backoff = new Backoff(this.withinMs);
    while (!lane.ended) {
      const before = `${lane.responseId} ${lane.last}`;
      let reason = new LmserveError("the server sends no end of the answer");
      try {
        await this.listen(lane);
      } catch (error) {
        if (!(error instanceof ConnectionLost)) {
          if (lane.responseId) return this.recover(lane);
          return lane.fail(/** @type {LmserveError} */ (error));
        }
        reason = error;
      }
      if (lane.over && !lane.ended) return this.recover(lane);
      if (before !== `${lane.responseId} ${lane.last}`) backoff.reset();
      if (lane.ended) return;
      const delay = this.aborter.signal.aborted ? null : backoff.next();
      if (delay === null) return lane.fail(reason);
      await this.pauses.pause(delay);
    }
  }

  /**
   * Of an answer whose next events cannot be had: it is looked at until it has ended.
   * @param {Lane} lane @returns {Promise<void>}
   */
  async recover(lane) {
    const backoff = new Backoff(this.withinMs);
    let looks = 0;
    while (!lane.ended) {
      /** @type {number | null} */
      let delay = POLL_MS;
      try {
        const response = await this.once("GET", `/v1/responses/${lane.responseId}`);
        lane.takeWhole(response);
        backoff.reset();
        const successor = lane.over && !lane.ended ? await this.successor(response) : null;
        if (successor) {
          lane.begin(successor);
          return this.follow(lane);
        }
        looks += lane.over ? 1 : 0;
        if (looks === MAX_LOOKS) lane.end();
      } catch (error) {
        const told = /** @type {LmserveError} */ (error);
        const again = told instanceof ConnectionLost || [429, 502, 503, 504].includes(told.status);
        delay = again && !this.aborter.signal.aborted ? backoff.next() : null;
        if (delay === null) return lane.fail(told);
      }
      if (!lane.ended) await this.pauses.pause(delay);
    }
  }

  /** What goes on with an answer that was steered. @param {Item} response */
  async successor(response) {
    if (response.successor) return response.successor;
    const { running } = await this.once("GET", `/v1/sessions/${response.session}`);
    for (const id of running ?? []) {
      const { previous_response_id } = await this.once("GET", `/v1/responses/${id}`);
      if (previous_response_id === response.id) return id;
    }
    return null;
  }

  /** One connection's worth of a lane. @param {Lane} lane */
  async listen(lane) {
    const { responseId, last, body } = lane;
    const response = await (responseId
      ? this.send(
          "GET",
          `/v1/responses/${responseId}?stream=true${last < 0 ? "" : `&starting_after=${last}`}`,
        )
      : this.create(body));
    for await (const item of readEvents(response)) {
      lane.take(item);
      if (lane.over) return;
    }
  }

  /** @param {Item} body */
  create({ idempotency_key, ...body }) {
    const headers = { "Idempotency-Key": idempotency_key };
    return this.send("POST", "/v1/responses", { ...body, stream: true }, headers);
  }

  /** @param {string} method @param {string} path @param {Item} [fields] @returns {Promise<any>} */
  async once(method, path, fields = {}) {
    const query = method === "GET" ? new URLSearchParams(fields).toString() : "";
    const body = method === "POST" ? fields : undefined;
    const response = await this.send(method, query ? `${path}?${query}` : path, body);
    try {
      return await response.json();
    } catch (error) {
      throw new ConnectionLost(`the connection broke: ${error}`);
    }
  }

  /**
   * @param {string} method @param {string} path @param {Item} [body]
   * @param {Record<string, string>} [headers] @returns {Promise<globalThis.Response>}
   */
  async send(method, path, body, headers = {}) {
    let response;
    try {
      response = await fetch(this.url + path, {
        method,
        headers: {
          ...this.headers,
          ...headers,
          ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        },
        body: body === undefined ? undefined : JSON.stringify(body),
        signal: this.aborter.signal,
      });
    } catch (error) {
      throw new ConnectionLost(`no connection to the server: ${error}`);
    }
    if (response.ok) return response;
    const text = await response.text().catch(() => "");
    let said;
    try {
      said = JSON.parse(text);
    } catch {
      said = { message: text.slice(0, 500) || `the server answered ${response.status}` };
    }
    throw refusal(response.status, said, response.headers.get("Retry-After"));
  }
}

/** The objects in a body of server-sent events. @param {globalThis.Response} response */
async function* readEvents(response) {
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const data = line.startsWith("data:") ? line.slice(5).trim() : "";
        if (data && data !== "[DONE]") yield JSON.parse(data);
      }
    }
  } catch (error) {
    throw new ConnectionLost(`the connection broke: ${error}`);
  } finally {
    reader.cancel().catch(() => {});
  }
}

// --- one WebSocket after the other --------------------------------------------------------

/**
 * @typedef {object} Call
 * @property {Verb} verb
 * @property {Item} fields
 * @property {Deferred<any>} answer
 * @property {Set<WebSocket>} sentOn
 */

class Link {
  /** @param {Rest} rest @param {Required<Options>} options */
  constructor(rest, options) {
    this.rest = rest;
    this.options = options;
    this.overHttp = !options.websocket || typeof WebSocket === "undefined";
    if (this.overHttp) queueMicrotask(() => options.onConnection("http"));
    this.numConnections = 0;
    /** @type {(item: Item) => void} Gets what is of no answer and no call. */
    this.onOther = () => {};
    /** @type {Map<string, Lane>} */
    this.lanes = new Map();
    /** @type {Map<string, Call>} */
    this.calls = new Map();
    /** @type {WebSocket | null} */
    this.socket = null;
    /** @type {Set<string>} Lanes that this connection tells. */
    this.attached = new Set();
    /** @type {Set<string>} Of them: those whose resumption is not answered yet. */
    this.resuming = new Set();
    /** @type {LmserveError | null} What this connection was told of itself: it will be closed. */
    this.told = null;
    /** @type {Map<string, number>} Of them: until this event it tells what was missed. */
    this.behind = new Map();
    this.backoff = new Backoff(options.reconnectWithinMs);
    this.refusals = 0;
    this.names = 0;
    this.running = false;
    this.closed = false;
  }

  /** @param {string} kind */
  name(kind) {
    this.names += 1;
    return `${kind}${this.names}`;
  }

  /** Its events come from now on. @param {Lane} lane */
  open(lane) {
    if (this.closed) throw closed();
    if (this.overHttp || this.lanes.size >= MAX_LANES) {
      this.rest.follow(lane);
      return;
    }
    this.lanes.set(lane.id, lane);
    if (this.socket) this.attach(this.socket, lane);
    this.run();
  }

  /** @param {Verb} verb @param {Item} fields @returns {Promise<any>} */
  async call(verb, fields) {
    if (this.closed) throw closed();
    if (this.overHttp) return this.rest.call(verb, fields);
    const id = this.name("e");
    /** @type {Call} */
    const call = { verb, fields, answer: defer(), sentOn: new Set() };
    this.calls.set(id, call);
    if (this.socket) this.ask(this.socket, id, call);
    this.run();
    try {
      return await call.answer.promise;
    } finally {
      this.calls.delete(id);
    }
  }

  /** @param {Lane} lane @param {Steering} steering */
  steer(lane, steering) {
    if (this.closed) throw closed();
    lane.steers.push(steering);
    if (!this.overHttp && this.lanes.has(lane.id)) {
      const waits = this.resuming.has(lane.id) || this.behind.has(lane.id); // see `sayAgain`
      if (this.socket && !waits) this.say(this.socket, steering);
      return;
    }
    this.steerByRest(lane, steering);
  }

  /** @param {Lane} lane @param {Steering} steering */
  async steerByRest(lane, steering) {
    steering.sent = true;
    try {
      const path = `/v1/responses/${steering.responseId}/steer`;
      const told = await this.rest.once("POST", path, { input: steering.input });
      steering.id ??= told.id ?? null;
    } catch (error) {
      if (error instanceof ConnectionLost) this.doubt(lane, steering);
      else lane.giveUp(steering, /** @type {Error} */ (error));
    }
  }

  /**
   * Whether it was taken on is told by the answer's events, or not at all.
   * @param {Lane} lane @param {Steering} steering
   */
  async doubt(lane, steering) {
    await this.rest.pauses.pause(DOUBT_MS);
    lane.giveUp(steering, unknown());
  }

  /** It goes over HTTP from now on. @param {Lane} lane */
  leave(lane) {
    for (const steering of lane.steers) {
      if (!steering.sent) this.steerByRest(lane, steering);
      else if (!steering.id) this.doubt(lane, steering);
    }
  }

  close() {
    this.closed = true;
    this.socket?.close(1000);
    this.rest.close();
    this.failAll(closed());
    this.options.onConnection("closed");
  }

  /** Keeps a connection while something waits for it. */
  async run() {
    if (this.running) return;
    this.running = true;
    try {
      while (!this.closed && (this.lanes.size || this.calls.size)) {
        this.options.onConnection("connecting");
        const { code, reason } = await this.talk();
        if (this.closed || (!this.lanes.size && !this.calls.size)) return;
        const said = `the server closed the connection: ${reason || `code ${code}`}`;
        if (code === DENIED) {
          this.failAll(this.told ?? new ConnectionLost(said));
        } else if (FAULTS.includes(code)) {
          this.failUnacknowledged(this.told ?? new ConnectionLost(said));
        } else if (this.refusals >= MAX_REFUSALS && (await this.mustGoOverHttp())) {
          return;
        }
        this.failOnce();
        const delay = this.backoff.next();
        if (delay === null) this.failAll(new ConnectionLost("no connection to the server"));
        else await this.rest.pauses.pause(delay);
      }
    } finally {
      this.running = false;
    }
  }

  /** One connection, until it is lost. @returns {Promise<{code: number, reason: string}>} */
  talk() {
    const { apiKey, keyIn, url } = this.options;
    const byEvent = apiKey !== null && keyIn === "event";
    const protocols =
      apiKey === null || byEvent ? ["lmserve"] : ["lmserve", `lmserve.key.${base64url(apiKey)}`];
    const socket = new WebSocket(`${url.replace(/^http/, "ws")}/v1/responses`, protocols);
    this.refusals += 1; // until it has told something
    let heard = Date.now();
    return new Promise((resolve) => {
      socket.onopen = () => {
        this.numConnections += 1;
        if (this.closed) return socket.close(1000);
        if (byEvent) send(socket, { type: "session.authenticate", api_key: apiKey });
        this.options.onConnection("connected");
        this.takeUp(socket);
      };
      socket.onmessage = ({ data }) => {
        heard = Date.now();
        this.refusals = 0;
        this.backoff.reset();
        this.take(JSON.parse(data));
      };
      const onEnd = ({ code = 1006, reason = "" }) => {
        clearInterval(watch);
        if (this.socket === socket) this.socket = null;
        if (!this.lanes.size && !this.calls.size) this.refusals = 0; // it was idle
        resolve({ code, reason });
      };
      socket.onclose = onEnd;
      const { silenceMs } = this.options;
      const watch = setInterval(() => {
        if (!this.lanes.size && !this.calls.size) heard = Date.now(); // nothing is waited for
        const silentMs = Date.now() - heard;
        if (silentMs < silenceMs) return;
        if (silentMs < 2 * silenceMs) {
          return send(socket, { type: "session.list", event_id: "anybody", limit: 1 });
        }
        socket.onmessage = null;
        socket.close();
        onEnd({}); // a lost peer says no goodbye
      }, silenceMs / 2);
      socket.onerror = () => setTimeout(onEnd, 0, {}); // some Nodes tell no `close` then
    });
  }

  /**
   * A browser does not tell why there is no WebSocket: HTTP does. Where that works, it is taken
   * from now on; a refusal there is told to all.
   */
  async mustGoOverHttp() {
    try {
      await this.rest.once("GET", "/v1/sessions", { limit: 1 });
    } catch (error) {
      if (error instanceof ConnectionLost) return false;
      const told = /** @type {LmserveError} */ (error);
      if (told.status !== 401 && told.status !== 403) return false;
      this.failAll(told);
      return true;
    }
    this.overHttp = true;
    this.options.onConnection("http");
    for (const lane of this.lanes.values()) {
      this.leave(lane);
      this.rest.follow(lane);
    }
    this.lanes.clear();
    this.failOnce();
    for (const { verb, fields, answer } of this.calls.values()) {
      this.rest.call(verb, fields).then(answer.resolve, answer.reject);
    }
    this.calls.clear();
    return true;
  }

  /** What runs goes on here. @param {WebSocket} socket */
  takeUp(socket) {
    this.attached.clear();
    this.resuming.clear();
    this.behind.clear();
    this.told = null;
    this.socket = socket;
    for (const lane of this.lanes.values()) this.attach(socket, lane);
    for (const [id, call] of this.calls) this.ask(socket, id, call);
  }

  /** @param {WebSocket} socket @param {Lane} lane */
  attach(socket, lane) {
    if (this.attached.has(lane.id)) return;
    this.attached.add(lane.id);
    const stream_id = lane.id;
    if (lane.responseId === null) {
      send(socket, { type: "response.create", stream_id, ...lane.body });
      return;
    }
    this.resuming.add(lane.id);
    send(socket, {
      type: "session.resume",
      event_id: `resume-${lane.id}`,
      stream_id,
      response_id: lane.responseId,
      ...(lane.last < 0 ? {} : { starting_after: lane.last }),
    });
  }

  /** @param {WebSocket} socket @param {string} event_id @param {Call} call */
  ask(socket, event_id, call) {
    if (call.sentOn.has(socket)) return;
    call.sentOn.add(socket);
    send(socket, { type: call.verb.type, event_id, ...call.fields });
  }

  /** @param {WebSocket} socket @param {Steering} steering */
  say(socket, steering) {
    const { responseId: previous_response_id, input } = steering;
    steering.sent = true;
    send(socket, { type: "response.steer", previous_response_id, input });
  }

  /** @param {Item} item */
  take(item) {
    const lane = this.lanes.get(item.stream_id) ?? this.steeredLane(item);
    const call = this.calls.get(item.event_id);
    const resumed = this.lanes.get(String(item.event_id ?? "").replace(/^resume-/, ""));
    if (call) this.takeAnswer(call, item);
    else if (item.type === "session.resume.done") resumed && this.onResumed(resumed, item);
    else if (item.type === "error" && item.status) this.onError(lane ?? resumed, item);
    else if (lane) this.tell(lane, item);
    else this.onOther(item);
  }

  /** @param {Lane} lane @param {Item} item */
  tell(lane, item) {
    delete item.stream_id;
    lane.take(item);
    if (lane.over && !lane.ended) this.awaitSuccessor(lane, lane.responseId);
    if (this.behind.has(lane.id)) this.sayAgain(lane);
    if (lane.ended) this.lanes.delete(lane.id);
  }

  /** @param {Call} call @param {Item} item */
  takeAnswer({ verb, fields, answer, sentOn }, item) {
    if (item.type !== "error") return answer.resolve(item.result);
    const error = refusal(item.status, item);
    const done = sentOn.size > 1 ? doneBefore(verb, fields, error) : null;
    if (done) answer.resolve(done);
    else answer.reject(error);
  }

  /** @param {Lane | undefined} lane @param {Item} item */
  onError(lane, item) {
    if (!lane) {
      this.told = refusal(item.status, item);
      return;
    }
    this.lanes.delete(lane.id);
    if (lane.responseId === null) return lane.fail(refusal(item.status, item));
    this.leave(lane);
    this.rest.recover(lane);
  }

  /** @param {Lane} lane @param {Item} item */
  onResumed(lane, item) {
    this.resuming.delete(lane.id);
    if (lane.steers.every((steering) => steering.id)) return;
    this.behind.set(lane.id, item.result.last);
    this.sayAgain(lane);
  }

  /**
   * What was said in mid-answer, and lost: once all events from before have come, it is known not
   * to have been taken.
   * @param {Lane} lane
   */
  sayAgain(lane) {
    const last = this.behind.get(lane.id);
    if (last === undefined || (lane.last < last && !lane.over)) return;
    this.behind.delete(lane.id);
    if (lane.ended || !this.socket) return;
    for (const steering of lane.steers) if (!steering.id) this.say(this.socket, steering);
  }

  /** Of what is told of an input by its answer's id alone. @param {Item} item */
  steeredLane(item) {
    if (item.stream_id || !String(item.type).startsWith("response.steer.")) return undefined;
    const id = item.steer.previous_response_id;
    return [...this.lanes.values()].find((lane) => lane.steers.some((one) => one.responseId === id));
  }

  /**
   * It follows at once, or the server does not know any more that it does.
   * @param {Lane} lane @param {string | null} steered
   */
  async awaitSuccessor(lane, steered) {
    await this.rest.pauses.pause(SUCCESSOR_MS);
    if (!lane.over || lane.responseId !== steered || !this.lanes.delete(lane.id)) return;
    this.rest.recover(lane);
  }

  /** One of these was at fault. @param {LmserveError} error */
  failUnacknowledged(error) {
    for (const lane of [...this.lanes.values()].filter((one) => one.responseId === null)) {
      this.lanes.delete(lane.id);
      lane.fail(error);
    }
    for (const { answer } of this.calls.values()) answer.reject(error);
  }

  failOnce() {
    for (const { verb, answer, sentOn } of this.calls.values()) {
      if (verb.once && sentOn.size) answer.reject(unknown());
    }
  }

  /** @param {LmserveError} error */
  failAll(error) {
    for (const lane of this.lanes.values()) lane.fail(error);
    this.lanes.clear();
    for (const { answer } of this.calls.values()) answer.reject(error);
    this.calls.clear();
  }
}

/** @param {WebSocket} socket @param {Item} item */
function send(socket, item) {
  if (socket.readyState === 1) socket.send(JSON.stringify(item));
}

/** @param {string} text */
function base64url(text) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  return btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

// --- what programs use --------------------------------------------------------------------

/**
 * `for await (const piece of answer)` gives its text as it is made. All that came is kept: it may
 * be read any number of times, whole (`text`) or as `events`.
 *
 * An answer that is steered goes on with its successor: the same loop reads on, and `id` is the
 * successor's from then on. Nothing need be read, and leaving a loop stops nothing: `cancel` does.
 */
export class Answer {
  /** @type {Link} */ #link;
  /** @type {Lane} */ #lane;

  /** @param {Link} link @param {Lane} lane */
  constructor(link, lane) {
    this.#link = link;
    this.#lane = lane;
  }

  /** Of the response that is being made, or was made last. */
  get id() {
    return /** @type {string} */ (this.#lane.responseId);
  }

  /** Of all its responses: more than one where it was steered. */
  get ids() {
    return [...this.#lane.ids];
  }

  /** The id of the session that it is a turn of. */
  get session() {
    return this.#lane.response?.session ?? null;
  }

  get ended() {
    return this.#lane.ended;
  }

  /** @returns {number | null} Tokens of its prompt that were not run again; null: not told yet. */
  get reusedTokens() {
    return this.#lane.response?.usage?.input_tokens_details?.cached_tokens ?? null;
  }

  /** All events, from the first on. @returns {AsyncGenerator<ServerEvent, void, void>} */
  async *events() {
    const lane = this.#lane;
    for (let at = 0; ; ) {
      while (at < lane.events.length) yield lane.events[at++];
      if (lane.ended) break;
      await lane.changed();
    }
    if (lane.error) throw lane.error;
  }

  /**
   * Throws AnswerFailed where the answer failed, AnswerInterrupted where the server cut it short.
   * @returns {AsyncGenerator<string, void, void>}
   */
  async *[Symbol.asyncIterator]() {
    for await (const event of this.events()) if (event.type === DELTA) yield event.delta;
    const response = this.#lane.response;
    if (response?.status === "failed") {
      const error = response.error ?? {};
      throw new AnswerFailed(error.message ?? "the answer failed", 0, error);
    }
    const reason = response?.incomplete_details?.reason;
    if (response && reason && INTERRUPTIONS.includes(reason)) throw new AnswerInterrupted(response);
  }

  /** All of it, once it has ended. */
  async text() {
    let text = "";
    for await (const piece of this) text += piece;
    return text;
  }

  /** The response that ended it, whatever its status. @returns {Promise<Response>} */
  async response() {
    for await (const event of this.events()) void event;
    return /** @type {Response} */ (this.#lane.response);
  }

  /** Stops it at once; what was said is kept. @returns {Promise<Response>} */
  cancel() {
    return this.#link.call(VERBS.cancel, { response_id: this.id });
  }

  /**
   * Changes its settings from the next token on.
   * @param {{max_output_tokens?: number, temperature?: number, stop?: string | string[]}} changes
   * @returns {Promise<Response>}
   */
  update(changes) {
    return this.#link.call(VERBS.change, { response_id: this.id, ...given(changes) });
  }

  /**
   * Says something while it speaks. Settles when that is being answered; rejects with SteerFailed
   * where it cannot be.
   * @param {string | Item[]} input @returns {Promise<Steered>}
   */
  async steer(input) {
    if (this.ended) {
      const code = "response_already_completed";
      throw new SteerFailed("the answer has ended: say it next", code, input);
    }
    const steering = new Steering(this.id, input);
    this.#link.steer(this.#lane, steering);
    return steering.settled.promise;
  }
}

/** `client.sessions`: conversations that the server keeps. A session's or message's id does, too. */
class Sessions {
  /** @type {Link} */ #link;

  /** @param {Link} link */
  constructor(link) {
    this.#link = link;
  }

  /**
   * @param {{id?: string, title?: string, messages?: Item[]}} [fields]
   * @returns {Promise<Session>}
   */
  create(fields = {}) {
    return this.#make(VERBS.create, fields.id, given(fields));
  }

  /**
   * Those used last; `after` the last of the page before.
   * @param {{limit?: number, after?: string}} [fields]
   * @returns {Promise<{data: Session[], last_id: string | null, has_more: boolean}>}
   */
  list(fields = {}) {
    return this.#link.call(VERBS.list, given(fields));
  }

  /** @param {Named} session @returns {Promise<Session>} */
  get(session) {
    return this.#link.call(VERBS.get, { session: idOf(session) });
  }

  /** @param {Named} session @param {string} title @returns {Promise<Session>} */
  rename(session, title) {
    return this.#link.call(VERBS.update, { session: idOf(session), title });
  }

  /**
   * The next turn follows that message, in this or another branch; `"root"`: none.
   * @param {Named} session @param {Named} to @returns {Promise<Session>}
   */
  rollback(session, to) {
    return this.#link.call(VERBS.update, { session: idOf(session), head: placeOf(to) });
  }

  /** With all its branches, at once. @param {Named} session @returns {Promise<void>} */
  async delete(session) {
    await this.#link.call(VERBS.delete, { session: idOf(session) });
  }

  /**
   * The line from the root to the head, or to `at`; or with `tree` all, each after its parent.
   * @param {Named} session @param {{at?: Named, tree?: boolean}} [fields]
   * @returns {Promise<Message[]>}
   */
  async messages(session, { at, tree } = {}) {
    const fields = given({ session: idOf(session), at: at && placeOf(at), tree: tree || null });
    return (await this.#link.call(VERBS.messages, fields)).data;
  }

  /**
   * Adds messages that are not answered. Where the connection breaks over it nobody knows whether
   * they were: ConnectionLost.
   * @param {Named} session @param {Item[]} messages @param {{after?: Named}} [fields]
   * @returns {Promise<Message[]>}
   */
  async append(session, messages, { after } = {}) {
    const fields = given({ session: idOf(session), messages, after: after && placeOf(after) });
    return (await this.#link.call(VERBS.append, fields)).data;
  }

  /**
   * A new one with the line up to the head, or to `at`.
   * @param {Named} session @param {{at?: Named, id?: string, title?: string}} [fields]
   * @returns {Promise<Session>}
   */
  fork(session, { at, id, title } = {}) {
    const fields = given({ session: idOf(session), at: at && placeOf(at), title });
    return this.#make(VERBS.fork, id, fields);
  }

  /** Stops what runs in it; false: nothing did. @param {Named} session @returns {Promise<boolean>} */
  async cancel(session) {
    return (await this.#link.call(VERBS.cancelSession, { session: idOf(session) })).cancelled;
  }

  /** All of it, to be kept or taken elsewhere. @param {Named} session @returns {Promise<Item>} */
  export(session) {
    return this.#link.call(VERBS.export, { session: idOf(session) });
  }

  /** @param {Item} exported @param {{id?: string}} [fields] @returns {Promise<Session>} */
  import(exported, { id } = {}) {
    return this.#make(VERBS.import, id, { session: exported });
  }

  /**
   * With an id made here, so that what was lost on the way can be asked again.
   * @param {Verb} verb @param {string | undefined} id @param {Item} fields
   * @returns {Promise<Session>}
   */
  async #make(verb, id, fields) {
    const named = id ?? newId("sess_");
    try {
      return await this.#link.call(verb, { ...fields, id: named });
    } catch (error) {
      const made = id === undefined && error instanceof LmserveError;
      if (made && error.code === "session_exists") return this.get(named);
      throw error;
    }
  }
}

/** A message's id; of a response, its message's. @param {any} named */
const placeOf = (named) => named.message_id ?? idOf(named);

/**
 * What is being typed in one session, told to the server, which runs it ahead: the answer begins
 * sooner. It is a help and no more: where it cannot be told, nothing is lost and nothing thrown.
 */
export class Draft {
  /** @type {Link} */ #link;
  #text = "";
  /** @type {string | null} What the server has; null: nobody knows. */
  #sent = "";
  /** @type {Promise<void> | null} */
  #telling = null;
  #isOff = false; // the server runs nothing ahead

  /** @param {Link} link @param {string} session */
  constructor(link, session) {
    this.#link = link;
    this.session = session;
    /** @type {{num_tokens: number, cached_tokens: number} | null} As it was told last. */
    this.prefilled = null;
  }

  /** What stands in the input by now. Call it at each key. @param {string} text */
  set(text) {
    this.#text = text;
    if (this.#isOff) return;
    this.#telling ??= this.#tell().finally(() => (this.#telling = null));
  }

  /** It was sent: the server forgets it, too. */
  clear() {
    this.#text = this.#sent = "";
  }

  /** Settles when the server knows the text. */
  async flush() {
    while (this.#telling) await this.#telling;
  }

  async #tell() {
    while (this.#text !== this.#sent) {
      await this.#link.rest.pauses.pause(DEBOUNCE_MS);
      const text = this.#text;
      try {
        const change = changeOf(this.#sent, text);
        const fields = { session: this.session, ...change };
        const { num_chars, state } = await this.#link.call(VERBS.draft, fields);
        if (state === "off") {
          this.#isOff = true;
          return;
        }
        // after a turn, or a while, the server begins it anew
        const known = "text" in change || num_chars === [...text].length;
        this.#sent = known ? text : null;
      } catch {
        this.#sent = null;
        return;
      }
    }
  }
}

/**
 * What makes the one text of the other, counted in code points. Small, where most of it stays.
 * @param {string | null} sent @param {string} text @returns {Item}
 */
function changeOf(sent, text) {
  if (sent === null) return { text };
  const before = [...sent];
  const now = [...text];
  let kept = 0;
  while (kept < before.length && kept < now.length && before[kept] === now[kept]) kept += 1;
  return given({
    truncate: kept < before.length ? kept : null,
    append: kept < now.length ? now.slice(kept).join("") : null,
  });
}

/** A client of one server. */
export class Lmserve {
  /** @type {Link} */ #link;
  /** @type {Map<string, Draft>} */ #drafts = new Map();

  /** @param {Options} [options] */
  constructor(options = {}) {
    const all = {
      url: (options.url ?? globalThis.location?.origin ?? "").replace(/\/+$/, ""),
      apiKey: options.apiKey ?? null,
      keyIn: options.keyIn ?? "subprotocol",
      reconnectWithinMs: options.reconnectWithinMs ?? 60_000,
      silenceMs: options.silenceMs ?? 20_000,
      websocket: options.websocket ?? true,
      onConnection: options.onConnection ?? (() => {}),
    };
    new URL(all.url); // throws where it is none
    this.#link = new Link(new Rest(all.url, all.apiKey, all.reconnectWithinMs), all);
    this.#link.onOther = (item) => this.#onOther(item);
    this.sessions = new Sessions(this.#link);
  }

  /** WebSockets so far: more than one means that some were lost. */
  get numConnections() {
    return this.#link.numConnections;
  }

  /**
   * Asks for an answer. Settles when the server has taken it on: what was said is kept from then
   * on, whatever happens. With neither `session` nor `previous` a new session begins. Further
   * fields go into the request as they are.
   * @param {Respond & Item} asked @returns {Promise<Answer>}
   */
  respond(asked) {
    const { session, previous, after, edit, regenerate, onEvent, ...rest } = asked;
    if (session && asked.input !== undefined) this.#drafts.get(idOf(session))?.clear();
    const body = given({
      ...rest,
      conversation: session && idOf(session),
      previous_response_id: previous && idOf(previous),
      after: after && placeOf(after),
      edit: edit && idOf(edit),
      regenerate: regenerate && idOf(regenerate),
      continue: asked.continue && idOf(asked.continue),
      idempotency_key: asked.idempotency_key ?? newId("key_"),
    });
    return this.#open(new Lane(this.#link.name("a"), body), onEvent);
  }

  /**
   * One that runs or ran, from its first event on: of another client, or of this page before it
   * was loaded anew.
   * @param {Named} response @param {{onEvent?: (event: ServerEvent) => void}} [options]
   * @returns {Promise<Answer>}
   */
  answer(response, { onEvent } = {}) {
    return this.#open(new Lane(this.#link.name("a"), {}, idOf(response)), onEvent);
  }

  /** Of what is being typed there: `draft.set(text)` at each key. @param {Named} session */
  draft(session) {
    const id = idOf(session);
    const draft = this.#drafts.get(id) ?? new Draft(this.#link, id);
    this.#drafts.set(id, draft);
    return draft;
  }

  /** What runs in the server goes on there for a while: `answer` finds it again. */
  close() {
    this.#link.close();
  }

  /** @param {Lane} lane @param {((event: ServerEvent) => void) | undefined} onEvent */
  async #open(lane, onEvent) {
    lane.onEvent = onEvent;
    this.#link.open(lane);
    while (!lane.events.length && !lane.ended) await lane.changed();
    if (lane.error) throw lane.error;
    return new Answer(this.#link, lane);
  }

  /** @param {Item} item */
  #onOther(item) {
    const draft = this.#drafts.get(item.session);
    if (!draft || item.type !== "session.draft.ready") return;
    draft.prefilled = { num_tokens: item.num_tokens, cached_tokens: item.cached_tokens };
  }
}
