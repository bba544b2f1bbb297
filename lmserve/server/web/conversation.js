// One conversation of the server, as this page sees it: its tree, the line that is shown, and the
// answers that are being made. Knows nothing of the screen.
//
//     asked ─► `turn` ─► response.created ─► the tree is loaded, `turn` is in it ─► deltas ─► end
//                                                        steered: a successor, the same again

import { Lane } from "./lane.js";
import { Tree } from "./tree.js";

/** The text of a message's content. */
function plain(content) {
  return typeof content === "string" ? content : content.map((part) => part.text ?? "").join("");
}

/** What is shown of a response beside its text. */
function told(response) {
  const reason = response?.incomplete_details?.reason;
  return { responseId: response?.id, reason, usage: response?.usage, error: response?.error?.message };
}

function answerShown(key, said) {
  const { response, text, waiting, ended, lost, firstMs, tokensPerSecond } = said;
  const state = lost ? "lost" : ended ? response.status : "in_progress";
  const shown = { id: null, key, role: "assistant", text, state, waiting, firstMs, tokensPerSecond, ...told(response) };
  return lost ? { ...shown, error: lost } : shown;
}

function turnShown(turn) {
  const shown = [];
  if (turn.text !== null) shown.push({ id: null, key: `question ${turn.since}`, role: "user", text: turn.text });
  const key = `answer ${turn.since}`;
  const state = turn.error ? "lost" : "in_progress";
  if (turn.said) shown.push(answerShown(key, turn.said));
  else shown.push({ id: null, key, role: "assistant", text: "", state, error: turn.error });
  return shown;
}

/** By which one sees that others changed a session. */
function markOf(session) {
  return `${session.head} ${session.num_messages}`;
}

export class Conversation {
  /**
   * `id` is null until the first turn of a new one. `hooks`: `changed()`, `failed(error)`,
   * `unsaid(text, error)` for what could not be said in mid-answer, and `begun(text)`, once.
   */
  constructor(connection, id, settings, hooks) {
    this.connection = connection;
    this.id = id;
    this.settings = settings; // gives the fields of a request that a person has set
    this.hooks = hooks;
    this.tree = new Tree();
    this.end = null; // the message that is shown last
    this.turn = null; // what was asked here and is not in the tree yet
    this.lanes = new Set();
    this.said = new Map(); // message id → Said, of the answers that were told here
    this.mark = ""; // of the session, as the tree was loaded
  }

  /** The answer that is being made at the end of what is shown. */
  get lane() {
    const isShown = ({ turn, at }) => (turn ? turn === this.turn : at !== null && at === this.end);
    return [...this.lanes].find(isShown) ?? null;
  }

  get isBusy() {
    return this.lane !== null;
  }

  // ---- what is shown -----------------------------------------------------------------

  /** The messages to show, in order. */
  line() {
    const { turn, lane } = this;
    const shown = this.tree.line(turn ? turn.parent : this.end).map((message) => this.#shown(message));
    if (turn) shown.push(...turnShown(turn));
    for (const { text } of lane?.steers ?? []) {
      shown.push({ id: null, key: `steer ${text}`, role: "user", text, isSteer: true });
    }
    const follows = lane && lane.at !== null && lane.at !== lane.said.messageId; // not in the tree yet
    if (follows) shown.push(answerShown(`of ${lane.said.response.id}`, lane.said));
    shown.forEach((one, index) => (one.isLast = index === shown.length - 1));
    return shown;
  }

  #shown(message) {
    const { id, role, response, status } = message;
    const said = this.said.get(id);
    const versions = this.tree.versions(id);
    if (said) return { ...answerShown(id, said), id, versions };
    const state = response?.status ?? status ?? "completed";
    return { id, key: id, role, text: plain(message.content), versions, state, ...told(response) };
  }

  /** Shows the newest line through this message; the next turn, here and elsewhere, goes on there. */
  show(id) {
    this.turn = null;
    this.end = this.tree.newestEnd(id);
    this.hooks.changed();
    if (this.lanes.size) return; // the server would move the head after the answer, and away from it
    this.connection.ask((client) => client.sessions.rollback(this.id, this.end)).catch(() => {});
  }

  // ---- what is said ------------------------------------------------------------------

  ask(text) {
    const after = this.end === null ? {} : { after: this.end };
    return this.#begin({ input: text, ...after }, this.end, text);
  }

  async edit(id, text) {
    await this.stop();
    return this.#begin({ input: text, edit: id }, this.tree.parentOf(id), text);
  }

  async regenerate(id) {
    await this.stop();
    return this.#begin({ regenerate: id }, this.tree.parentOf(id));
  }

  goOn(id) {
    return this.#begin({ continue: id }, this.tree.parentOf(id));
  }

  /** What did not begin, failed, or was lost sight of. */
  retry(shown) {
    const { turn } = this;
    if (turn?.error) return this.#begin(turn.form, turn.parent, turn.text);
    if (shown.state === "failed") return this.regenerate(shown.id);
    this.turn = null;
    return this.follow(shown.responseId);
  }

  /** Stops the answer that is shown last. */
  async stop() {
    const { lane } = this;
    if (!lane) return;
    if (!lane.said) {
      lane.isStopped = true; // as soon as it begins
      return;
    }
    try {
      await (await lane.opened).cancel();
    } catch (error) {
      this.hooks.failed(error);
    }
  }

  /** Says something while it speaks; after it, where it has just ended. */
  async steer(text) {
    const { lane } = this;
    const steer = { text, applied: false };
    lane.steers.push(steer);
    this.hooks.changed();
    try {
      await (await lane.opened).steer(text);
    } catch (error) {
      lane.steers = lane.steers.filter((other) => other !== steer);
      this.hooks.changed();
      if (error.code !== "response_already_completed") return this.hooks.unsaid(text, error);
      await lane.ended;
      return this.ask(text);
    }
  }

  #begin(form, parent, text = null) {
    const turn = { form, parent, text, error: "", said: null, since: performance.now() };
    this.turn = turn;
    const asked = { ...form, ...this.settings(), session: this.id ?? undefined };
    return this.#run(new Lane(turn), (client, onEvent) => client.respond({ ...asked, onEvent }));
  }

  /** One that runs in the server: from its first event on. */
  follow(responseId) {
    if ([...this.lanes].some((lane) => lane.ids.has(responseId))) return;
    const lane = new Lane(null);
    lane.ids.add(responseId);
    return this.#run(lane, (client, onEvent) => client.answer(responseId, { onEvent }));
  }

  async #run(lane, open) {
    this.lanes.add(lane);
    lane.opened = this.connection.ask((client) => open(client, (event) => this.#take(lane, event)));
    lane.ended = this.#hear(lane);
    this.hooks.changed();
    await lane.ended;
    this.hooks.changed();
  }

  async #hear(lane) {
    try {
      const answer = await lane.opened;
      if (lane.isStopped) await answer.cancel();
      await answer.response();
      await lane.adopted;
    } catch (error) {
      if (lane.said) lane.said.lost = lane.said.ended ? "" : error.message;
      else if (lane.turn) lane.turn.error = error.message;
      this.hooks.failed(error);
    } finally {
      this.lanes.delete(lane);
    }
  }

  #take(lane, event) {
    switch (event.type) {
      case "response.created":
        lane.begin(event.response);
        lane.adopted = this.#adopt(lane, lane.said);
        break;
      case "session.queued":
        lane.said.waiting = event;
        break;
      case "response.output_text.delta":
        lane.said.add(event.delta);
        break;
      case "session.steer.applied":
        lane.applied();
        break;
      case "response.completed":
      case "response.incomplete":
      case "response.failed":
        lane.said.end(event.response);
    }
    this.hooks.changed();
  }

  /** Its messages are on disk: from now on they are shown out of the tree. */
  async #adopt(lane, said) {
    const isNew = this.id === null;
    this.id ??= said.response.session;
    this.said.set(said.messageId, said);
    if (isNew) this.hooks.begun(lane.turn.text);
    try {
      await this.load();
    } catch (error) {
      this.hooks.failed(error);
      return;
    }
    const wasShown = lane.turn ? lane.turn === this.turn : this.tree.isAbove(this.end, said.messageId);
    if (wasShown) this.end = said.messageId;
    if (lane.turn === this.turn) this.turn = null;
    lane.turn = null;
    lane.at = said.messageId;
    lane.prune();
    this.hooks.changed();
  }

  // ---- what the server has -----------------------------------------------------------

  async load() {
    const [session, messages] = await this.connection.ask(({ sessions }) =>
      Promise.all([sessions.get(this.id), sessions.messages(this.id, { tree: true })]));
    this.tree = new Tree(messages);
    this.mark = markOf(session);
    if (!this.tree.has(this.end)) this.end = this.tree.madeBy(session.running ?? []) ?? session.head;
    this.end = this.tree.newestEnd(this.end); // others may have gone on there
    this.#followAll(session);
    this.hooks.changed();
  }

  /** Takes on what others did with it meanwhile. */
  async sync(session) {
    if (markOf(session) !== this.mark) await this.load();
    else this.#followAll(session);
  }

  #followAll(session) {
    if ([...this.lanes].some((lane) => lane.turn)) return; // it may be that one
    for (const id of session.running ?? []) this.follow(id);
  }
}
