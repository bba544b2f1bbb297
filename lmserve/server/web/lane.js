// One answer as this page hears it: of a turn that was asked here, or of one found running.

/** What one response said so far. */
export class Said {
  /** `since`: when it was asked for; null: it is not known, so that no speed can be told. */
  constructor(response, since) {
    this.response = response;
    this.since = since;
    this.text = "";
    this.waiting = null; // { position, estimate_s } while others are before it
    this.ended = false;
    this.lost = ""; // why its events can no longer be had
    this.firstMs = 0;
    this.tokensPerSecond = 0;
  }

  get messageId() {
    return this.response.message_id;
  }

  add(text) {
    this.waiting = null;
    if (this.since !== null && !this.firstMs) this.firstMs = performance.now() - this.since;
    this.text += text;
  }

  end(response) {
    this.response = response;
    this.waiting = null;
    this.ended = true;
    const numTokens = response.usage?.output_tokens ?? 0;
    if (!this.firstMs || numTokens < 2) return;
    const ms = performance.now() - this.since - this.firstMs;
    if (ms > 0) this.tokensPerSecond = ((numTokens - 1) * 1000) / ms;
  }
}

/** An answer and those that succeed it where it is steered. */
export class Lane {
  /** `turn` is what was asked here, until it is in the tree; null: it was found running. */
  constructor(turn) {
    this.turn = turn;
    this.said = null; // by the response that is told now
    this.at = null; // the message of it that the tree has
    this.ids = new Set(); // of its responses
    this.steers = []; // { text, applied }: said in mid-answer, and not in the tree yet
    this.isStopped = false; // before it began
    this.opened = null; // promises the client's Answer
    this.adopted = null; // promises that the tree has what was begun last
    this.ended = null; // promises nothing but that it has ended
  }

  begin(response) {
    this.ids.add(response.id);
    this.said = new Said(response, this.#since());
    if (this.turn) this.turn.said = this.said;
  }

  /** When what begins now was asked for. */
  #since() {
    if (this.said) return performance.now(); // it succeeds another
    if (this.turn === null || this.turn.form.continue) return null; // it begins with what was said before
    return this.turn.since;
  }

  /** The server says that one more of what was said in mid-answer is in the conversation. */
  applied() {
    const steer = this.steers.find((one) => !one.applied);
    if (steer) steer.applied = true;
    if (this.at === this.said.messageId) this.prune();
  }

  prune() {
    this.steers = this.steers.filter((steer) => !steer.applied);
  }
}
