// The field at the bottom: what is typed, sent, said in mid-answer, or told ahead of sending.

import { icon } from "./dom.js";

export class Composer {
  /** `actions`: send(text), stop(), typed(text). */
  constructor(form, actions) {
    this.form = form;
    this.actions = actions;
    this.field = form.querySelector("textarea");
    this.button = form.querySelector("button");
    this.isBusy = false;
    this.#listen();
    this.#showButton();
  }

  get text() {
    return this.field.value.trim();
  }

  /** While an answer is being made, an empty field's button stops it; anything else is sent. */
  show(isBusy) {
    if (isBusy === this.isBusy) return;
    this.isBusy = isBusy;
    this.#showButton();
  }

  focus() {
    this.field.focus();
  }

  /** Puts back what could not be said. */
  restore(text) {
    this.field.value = [text, this.field.value].filter(Boolean).join("\n");
    this.#resize();
  }

  #listen() {
    this.field.addEventListener("input", () => {
      this.#resize();
      this.actions.typed(this.field.value);
    });
    this.field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#send();
    });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#stops) this.actions.stop();
      else this.#send();
      this.focus();
    });
  }

  get #stops() {
    return this.isBusy && this.text === "";
  }

  #send() {
    const { text } = this;
    if (!text) return;
    this.field.value = "";
    this.#resize();
    this.actions.send(text);
  }

  #resize() {
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
    this.#showButton();
  }

  #showButton() {
    const [name, label, hint] = this.#stops ? ["stop", "Stop", "Esc"] : ["up", "Send", "Enter"];
    this.field.placeholder = this.isBusy ? "Say something while it answers" : "Write a message";
    this.button.disabled = !this.#stops && this.text === "";
    if (this.button.getAttribute("aria-label") === label && this.button.firstChild) return;
    this.button.replaceChildren(icon(name));
    this.button.setAttribute("aria-label", label);
    this.button.title = `${label} (${hint})`;
  }
}
