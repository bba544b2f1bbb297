// How one message looks: its text, its versions, its actions, its figures. Each view has
// `update(shown)`, called whenever the message may have changed.

import { copyButton, el, icon, iconButton } from "./dom.js";
import { ending, figures, wait } from "./figures.js";
import { renderMarkdown } from "./markdown.js";

/** `actions`: edit(id, text), regenerate(id), goOn(id), fork(id), show(id), retry(shown). */
export function viewOf(shown, actions) {
  if (shown.role === "user") return new Question(shown, actions);
  if (shown.role === "assistant") return new Answer(shown, actions);
  return new Note(shown);
}

/** ‹ 2/3 ›: what else was said in this place. */
class Versions {
  constructor(show) {
    this.show = show;
    this.count = el("span", { class: "count" });
    this.back = iconButton("back", "Previous version", () => this.step(-1));
    this.forth = iconButton("forth", "Next version", () => this.step(1));
    this.node = el("span", { class: "versions", role: "group", "aria-label": "Versions" }, this.back, this.count, this.forth);
  }

  update({ id, versions = [] }) {
    this.versions = versions;
    this.place = versions.indexOf(id);
    this.node.hidden = versions.length < 2;
    this.count.textContent = `${this.place + 1}/${versions.length}`;
    this.back.disabled = this.place === 0;
    this.forth.disabled = this.place === versions.length - 1;
  }

  step(by) {
    this.show(this.versions[this.place + by], by < 0 ? "Previous version" : "Next version");
  }
}

class Question {
  constructor(shown, actions) {
    this.actions = actions;
    this.body = el("div", { class: "bubble" }, shown.text);
    this.versions = new Versions(actions.show);
    this.change = iconButton("edit", "Edit", () => this.edit());
    this.tools = el("div", { class: "actions" }, this.versions.node, copyButton(() => shown.text), this.change);
    this.node = el("article", { class: "message user", "aria-label": "You" }, this.body, this.tools);
    this.node.classList.toggle("steering", shown.isSteer === true);
    this.update(shown);
  }

  update(shown) {
    this.shown = shown;
    this.versions.update(shown);
    this.change.hidden = shown.id === null;
    this.tools.hidden = shown.isSteer === true;
  }

  edit() {
    const leave = () => {
      this.node.replaceChildren(this.body, this.tools);
      this.change.focus();
    };
    const send = (text) => {
      this.node.replaceChildren(this.body, this.tools);
      this.actions.edit(this.shown.id, text);
    };
    this.node.replaceChildren(editor(this.shown.text, send, leave));
  }
}

function editor(text, onSend, onCancel) {
  const area = el("textarea", { rows: "3", "aria-label": "Edit message" });
  area.value = text;
  const send = () => area.value.trim() && onSend(area.value.trim());
  area.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.stopPropagation();
      onCancel();
    } else if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      send();
    }
  });
  requestAnimationFrame(() => area.focus());
  return el("div", { class: "editor" }, area,
    el("div", { class: "dialog-actions" },
      el("button", { class: "button", type: "button", onclick: onCancel }, "Cancel"),
      el("button", { class: "button primary", type: "button", onclick: send }, "Send")));
}

class Answer {
  constructor(shown, actions) {
    this.body = el("div", { class: "markdown" });
    this.wait = el("p", { class: "wait", role: "status" });
    this.error = el("p", { class: "error", role: "alert" }, el("span"),
      el("button", { class: "button", type: "button", onclick: () => actions.retry(this.shown) }, icon("again"), "Retry"));
    this.stats = el("span", { class: "stats" });
    this.versions = new Versions(actions.show);
    this.again = iconButton("again", "Regenerate", () => actions.regenerate(this.shown.id));
    this.fork = iconButton("fork", "Fork from here", () => actions.fork(this.shown.id));
    this.goOn = el("button", { class: "button small", type: "button", onclick: () => actions.goOn(this.shown.id) }, "Continue");
    const copy = copyButton(() => this.shown.text);
    this.foot = el("div", { class: "actions" }, this.goOn, this.versions.node, this.stats, copy, this.again, this.fork);
    this.node = el("article", { class: "message answer", "aria-label": "Assistant" }, this.body, this.wait, this.error, this.foot);
    this.update(shown);
  }

  update(shown) {
    this.shown = shown;
    const { id, text, state, waiting, error, isLast } = shown;
    const isBusy = state === "in_progress" || state === "queued";
    renderMarkdown(this.body, text);
    this.node.setAttribute("aria-busy", String(isBusy));
    this.node.dataset.state = state;
    this.wait.hidden = !(isBusy && waiting);
    if (waiting) this.wait.textContent = wait(waiting);
    this.error.hidden = !error;
    this.error.firstChild.textContent = error ?? "";
    this.foot.hidden = isBusy || id === null;
    this.goOn.hidden = !(isLast && ending(shown));
    this.stats.textContent = figures(shown);
    this.versions.update(shown);
  }
}

/** What neither a person nor the model said: instructions, a tool's output. */
class Note {
  constructor({ role, text }) {
    this.node = el("article", { class: "message note", "aria-label": role }, el("b", {}, role), ` ${text}`);
  }

  update() {}
}
