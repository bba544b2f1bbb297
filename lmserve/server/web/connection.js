// The one connection of the page, with the key where the server asks for one.

import { askForKey, currentKey } from "./key.js";
import { Lmserve, LmserveError } from "./lmserve.js";

export class Connection {
  #client = null;
  #key = "";

  /** `onState` gets "connecting", "connected" or "http". */
  constructor(onState) {
    this.onState = onState;
  }

  get client() {
    const key = currentKey();
    if (this.#client && this.#key === key) return this.#client;
    this.#client?.close();
    this.#key = key;
    this.#client = new Lmserve({ apiKey: key || null, onConnection: this.onState });
    return this.#client;
  }

  /** What `work(client)` gives. Where a key is needed, a person is asked for it. */
  async ask(work) {
    for (;;) {
      const key = currentKey();
      try {
        return await work(this.client);
      } catch (error) {
        if (error.status !== 401) throw error;
        const another = currentKey() !== key; // given meanwhile, for another call
        if (!another && !(await askForKey())) throw new LmserveError("An API key is needed to go on.", 401);
      }
    }
  }
}

/** Whether nothing was run, and the same may pass once the server is back. */
export function isAway(error) {
  return error.status === 0 || error.status === 503;
}
