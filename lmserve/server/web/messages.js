// How one message looks: its text, its actions, its figures. Knows nothing of the server.

import { copyButton, el, icon, iconButton } from "./dom.js";
import { renderMarkdown } from "./markdown.js";

/** The line of figures under an answer. */
export function describeStats({ stats, state, finishReason }) {
  const parts = [];
  if (state === "stopped") parts.push("stopped");
  if (finishReason === "length") parts.push("token limit reached");
  if (finishReason === "abort") parts.push("cut short by the server");
  if (stats?.completionTokens) parts.push(plural(stats.completionTokens, "token"));
  if (stats?.tokensPerSecond) parts.push(`${stats.tokensPerSecond.toFixed(1)} tok/s`);
  if (stats?.firstTokenMs) parts.push(`first token ${seconds(stats.firstTokenMs)}`);
  if (stats?.cachedTokens) {
    parts.push(`${stats.cachedTokens} of ${stats.promptTokens} prompt tokens cached`);
  }
  return parts.join(" · ");
}

function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

function seconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`;
}

export function userMessage(message, onEdit) {
  const node = el("article", { class: "message user", "aria-label": "You" });
  const body = el("div", { class: "bubble" }, message.content);
  const edit = () => node.replaceChildren(editor(message, onEdit, show));
  const actions = el("div", { class: "actions" }, copyButton(() => message.content), iconButton("edit", "Edit", edit));
  const show = () => node.replaceChildren(body, actions);
  show();
  return node;
}

function editor(message, onSave, onCancel) {
  const area = el("textarea", { rows: "3", "aria-label": "Edit message" });
  area.value = message.content;
  const save = () => area.value.trim() && onSave(area.value.trim());
  area.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.stopPropagation();
      onCancel();
    } else if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      save();
    }
  });
  requestAnimationFrame(() => area.focus());
  return el("div", { class: "editor" }, area,
    el("div", { class: "dialog-actions" },
      el("button", { class: "button", type: "button", onclick: onCancel }, "Cancel"),
      el("button", { class: "button primary", type: "button", onclick: save }, "Send")));
}

/** An answer with `update()`, called whenever the message has changed. */
export class Answer {
  constructor(message, { onRegenerate, onRetry }) {
    this.message = message;
    this.body = el("div", { class: "markdown" });
    this.stats = el("span", { class: "stats" });
    this.regenerate = onRegenerate && iconButton("again", "Regenerate", onRegenerate);
    this.error = el("p", { class: "error", role: "alert" }, el("span"),
      onRetry && el("button", { class: "button", type: "button", onclick: onRetry }, icon("again"), "Retry"));
    this.foot = el("div", { class: "actions" }, this.stats, copyButton(() => message.content), this.regenerate);
    this.node = el("article", { class: "message answer", "aria-label": "Assistant" }, this.body, this.error, this.foot);
    this.update();
  }

  update() {
    const { content, state, error } = this.message;
    const streaming = state === "streaming";
    renderMarkdown(this.body, content);
    this.node.setAttribute("aria-busy", String(streaming));
    this.node.dataset.state = state;
    this.error.hidden = state !== "error";
    this.error.firstChild.textContent = error ?? "";
    this.foot.hidden = streaming || (state === "error" && !content);
    this.stats.textContent = describeStats(this.message);
  }
}
