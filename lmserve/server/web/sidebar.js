// The list of the server's conversations: open, rename, fork, delete.

import { el, iconButton } from "./dom.js";

const MAX_TITLE_LETTERS = 200; // as the server takes them

export function titleOf(session) {
  return session?.title || "Untitled";
}

function renameField(session, onDone) {
  const field = el("input", { value: titleOf(session), "aria-label": "Conversation name", maxlength: String(MAX_TITLE_LETTERS) });
  let done = false;
  const finish = (keep) => {
    if (done) return; // removing the field blurs it, which would finish again
    done = true;
    const title = field.value.trim();
    onDone(keep && title !== titleOf(session) ? title : "");
  };
  field.addEventListener("blur", () => finish(true));
  field.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter") finish(true);
    if (event.key === "Escape") {
      event.stopPropagation();
      finish(false);
    }
  });
  return field;
}

export class Sidebar {
  #told = "";

  /** `actions`: open(session), rename(session, title), fork(session), remove(session), more(). */
  constructor(list, actions) {
    this.list = list;
    this.actions = actions;
    this.isRenaming = false;
  }

  show(sessions, currentId, hasMore) {
    const told = JSON.stringify([sessions.map(({ id, title, running }) => [id, title, running?.length]), currentId, hasMore]);
    if (this.isRenaming || told === this.#told) return; // a name is being typed, or nothing is new
    this.#told = told;
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    const more = el("li", {}, el("button", { class: "conversation more", type: "button", onclick: this.actions.more }, "Show more"));
    const items = sessions.map((session) => this.#item(session, session.id === currentId));
    this.list.replaceChildren(...items, ...(hasMore ? [more] : []));
    if (focused) this.list.querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
  }

  #item(session, isCurrent) {
    const title = titleOf(session);
    const isRunning = session.running?.length > 0;
    const open = el("button", {
      class: "conversation", type: "button", title, "data-id": session.id,
      "aria-current": isCurrent ? "true" : null, onclick: () => this.actions.open(session),
    }, title);
    const dot = isRunning && el("span", { class: "running", role: "img", "aria-label": "is answering" });
    return el("li", { class: isCurrent ? "current" : "" }, open, dot || null,
      iconButton("edit", "Rename", (event) => this.#rename(event.currentTarget.closest("li"), session)),
      iconButton("fork", "Fork", () => this.actions.fork(session)),
      iconButton("trash", "Delete", () => this.actions.remove(session)));
  }

  #rename(row, session) {
    this.isRenaming = true;
    const field = renameField(session, (title) => {
      this.isRenaming = false;
      this.#told = "";
      this.actions.rename(session, title);
    });
    row.replaceChildren(field);
    field.select();
  }
}
