// The messages of a conversation as a tree: each has one parent, and the line to a message is read.

export class Tree {
  #messages = new Map(); // id → message
  #children = new Map(); // id, or null for the root → ids, oldest first

  /** Of messages as the server tells a whole tree: each after its parent. */
  constructor(messages = []) {
    for (const message of messages) {
      this.#messages.set(message.id, message);
      const beside = this.#children.get(message.parent) ?? [];
      this.#children.set(message.parent, [...beside, message.id]);
    }
  }

  has(id) {
    return this.#messages.has(id);
  }

  parentOf(id) {
    return this.#messages.get(id)?.parent ?? null;
  }

  /** From the first message to this one. */
  line(end) {
    const line = [];
    for (let at = this.#messages.get(end); at; at = this.#messages.get(at.parent)) line.push(at);
    return line.reverse();
  }

  /** All that were said in its place, itself too. */
  versions(id) {
    const { parent, role } = this.#messages.get(id);
    return this.#children.get(parent).filter((other) => this.#messages.get(other).role === role);
  }

  /** Where the newest line through this message ends; through any, where it is null. */
  newestEnd(id) {
    let end = id;
    for (let next = this.#children.get(end); next; next = this.#children.get(end)) end = next.at(-1);
    return end;
  }

  /** Whether the line to `id` goes through `above`. */
  isAbove(above, id) {
    return above === null || this.line(id).some((message) => message.id === above);
  }

  /** The message that one of these responses made. */
  madeBy(responses) {
    return [...this.#messages.values()].find(({ response }) => responses.includes(response?.id))?.id ?? null;
  }
}
