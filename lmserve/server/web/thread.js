// The line of messages on the screen. A message keeps its nodes while it is shown: an open editor,
// a selection and the focus outlive whatever happens around them.

import { viewOf } from "./messages.js";

export class Thread {
  #views = new Map(); // key of a shown message → { view, told }

  constructor(log, actions) {
    this.log = log;
    this.actions = { ...actions, show: (id, label) => this.#switch(id, label) };
  }

  /** `line` as a conversation gives it; `welcome` is for where nothing was said. */
  show(line, welcome) {
    const views = new Map();
    for (const shown of line) views.set(shown.key, this.#view(shown));
    this.#views = views;
    const nodes = [...views.values()].map(({ view }) => view.node);
    this.#place(nodes.length ? nodes : [welcome]);
  }

  #view(shown) {
    const told = JSON.stringify(shown);
    const kept = this.#views.get(shown.key);
    if (!kept) return { view: viewOf(shown, this.actions), told };
    if (kept.told !== told) kept.view.update(shown);
    return { view: kept.view, told };
  }

  /** Moves no node that is where it belongs: one that is moved loses the focus. */
  #place(nodes) {
    const wanted = new Set(nodes);
    for (const node of [...this.log.children]) if (!wanted.has(node)) node.remove();
    nodes.forEach((node, index) => {
      if (this.log.children[index] !== node) this.log.insertBefore(node, this.log.children[index] ?? null);
    });
  }

  /** To another version, whose button gets the focus of the one that was pressed. */
  #switch(id, label) {
    this.actions.switchTo(id);
    const buttons = this.#views.get(id)?.view.versions.node.querySelectorAll("button:enabled") ?? [];
    const same = [...buttons].find((button) => button.getAttribute("aria-label") === label);
    (same ?? buttons[0])?.focus();
  }
}
