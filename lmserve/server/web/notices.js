// What the page says beside the conversation: a banner while something is wrong, and short notes.

import { el } from "./dom.js";

const TOAST_MS = 6000;
const reasons = new Map(); // who says it → what
let timer = 0;

/** Shows `text` until the same `source` says "". */
export function banner(source, text) {
  if (text) reasons.set(source, text);
  else reasons.delete(source);
  const node = document.getElementById("banner");
  node.textContent = [...reasons.values()][0] ?? "";
  node.hidden = reasons.size === 0;
}

export function toast(text, label = "", onclick = null) {
  const node = document.getElementById("toast");
  const act = () => {
    node.hidden = true;
    onclick();
  };
  node.replaceChildren(text, label && el("button", { class: "button", type: "button", onclick: act }, label));
  node.hidden = false;
  clearTimeout(timer);
  timer = setTimeout(() => (node.hidden = true), TOAST_MS);
}
