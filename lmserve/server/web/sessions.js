// The list of the server's conversations, looked at again and again: others may change it, too.

const PAGE = 50;
const EVERY_MS = 2000;

export class SessionList {
  #wanted = PAGE;
  #timer = 0;

  /** `onChange()` after each look, `onFailure(error)` after one that failed. */
  constructor(connection, onChange, onFailure) {
    this.connection = connection;
    this.onChange = onChange;
    this.onFailure = onFailure;
    this.sessions = [];
    this.hasMore = false;
  }

  find(id) {
    return this.sessions.find((session) => session.id === id);
  }

  more() {
    this.#wanted += PAGE;
    return this.look();
  }

  /** Now, and from now on while somebody looks at the page. */
  async watch() {
    document.addEventListener("visibilitychange", () => document.hidden || this.#again(0));
    await this.look();
  }

  async look() {
    clearTimeout(this.#timer);
    try {
      await this.#load();
      this.onChange();
    } catch (error) {
      this.onFailure(error);
      if (error.status === 401) return; // until there is a key
    }
    this.#again(EVERY_MS);
  }

  #again(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => document.hidden || this.look(), ms);
  }

  async #load() {
    const sessions = [];
    for (let after; ; after = sessions.at(-1).id) {
      const page = await this.connection.client.sessions.list({ limit: PAGE, after });
      sessions.push(...page.data);
      this.hasMore = page.has_more;
      if (!page.has_more || sessions.length >= this.#wanted) break;
    }
    this.sessions = sessions;
  }
}
