// The chat page: conversations, one running answer each, and the composer.

import { ApiError, getHealth, getModels, streamChat } from "./api.js";
import { el, icon } from "./dom.js";
import { Answer, userMessage } from "./messages.js";
import { Follower } from "./scroll.js";
import { openSettings, samplingFields } from "./settings.js";
import { renderSidebar } from "./sidebar.js";
import { deleteConversation, loadConversations, loadSettings, newConversation, saveConversation } from "./store.js";

const RETRY_HEALTH_MS = 1000;
const TITLE_LENGTH = 48;
const IDEAS = [
  "Explain how a rainbow forms, in three sentences",
  "Write a short poem about the sea",
  "Give me five ideas for a rainy Sunday",
  "Why is the sky blue?",
];

const byId = (id) => document.getElementById(id);
const log = byId("log");
const prompt = byId("prompt");
const follower = new Follower(byId("scroller"), byId("latest"));

let conversations = loadConversations();
let current = newConversation();
let answer = null; // the Answer shown last
let models = [];
let watching = false;
const running = new Map(); // conversation id → AbortController

// ---- conversations -------------------------------------------------------------------

function save(conversation) {
  conversation.updated = Date.now();
  if (!conversations.includes(conversation)) conversations.unshift(conversation);
  conversations.sort((a, b) => b.updated - a.updated);
  if (!saveConversation(conversation)) toast("The browser's storage is full: this chat is not kept.");
  showSidebar();
}

function open(conversation) {
  current = conversation;
  location.hash = conversation.messages.length ? conversation.id : "";
  document.body.classList.remove("menu-open");
  show();
  prompt.focus();
}

function rename(conversation, title) {
  if (title) {
    conversation.title = title;
    saveConversation(conversation);
  }
  showSidebar();
}

function remove(conversation) {
  running.get(conversation.id)?.abort();
  conversations = conversations.filter((other) => other !== conversation);
  deleteConversation(conversation.id);
  if (conversation === current) open(newConversation());
  showSidebar();
  toast("Chat deleted.", "Undo", () => save(conversation));
}

// ---- what is on the screen -----------------------------------------------------------

function showSidebar() {
  renderSidebar(byId("conversations"), conversations, current, { open, rename, remove });
  byId("title").textContent = current.title || "New chat";
  document.title = `${current.title || "Chat"} · lmserve`;
}

function show() {
  const nodes = current.messages.map((message, index) => {
    if (message.role === "user") return userMessage(message, (text) => ask(text, index));
    const again = index === current.messages.length - 1 ? () => regenerate(index) : null;
    answer = new Answer(message, { onRegenerate: again, onRetry: again });
    return answer.node;
  });
  log.replaceChildren(...(nodes.length ? nodes : [welcome()]));
  showSidebar();
  showRunning();
  follower.jump();
}

function welcome() {
  const ideas = IDEAS.map((idea) => el("button", { class: "idea", type: "button", onclick: () => ask(idea) }, idea));
  return el("div", { class: "welcome" },
    el("img", { src: "/web/icon.svg", alt: "", width: "48", height: "48" }),
    el("h2", {}, "What would you like to know?"),
    el("div", { class: "ideas" }, ideas));
}

function showRunning() {
  const busy = running.has(current.id);
  const send = byId("send");
  send.replaceChildren(icon(busy ? "stop" : "up"));
  send.setAttribute("aria-label", busy ? "Stop" : "Send");
  send.title = busy ? "Stop (Esc)" : "Send (Enter)";
  send.disabled = !busy && prompt.value.trim() === "";
  log.setAttribute("aria-busy", String(busy));
}

let toastTimer = 0;

function toast(text, label = "", onclick = null) {
  const node = byId("toast");
  const act = () => {
    node.hidden = true;
    onclick();
  };
  node.replaceChildren(text, label && el("button", { class: "button", type: "button", onclick: act }, label));
  node.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (node.hidden = true), 6000);
}

// ---- asking and answering ------------------------------------------------------------

/** Ask `text` at place `index` of the conversation; what came after is dropped. */
function ask(text, index = current.messages.length) {
  if (running.has(current.id)) return;
  current.messages.splice(index);
  current.messages.push({ role: "user", content: text });
  current.title ||= text.split("\n")[0].slice(0, TITLE_LENGTH);
  generate(current);
}

function regenerate(index) {
  if (running.has(current.id)) return;
  current.messages.splice(index);
  generate(current);
}

function request(conversation) {
  const settings = loadSettings();
  const system = settings.system.trim();
  const messages = conversation.messages
    .filter((message) => message.content)
    .map(({ role, content }) => ({ role, content }));
  if (system) messages.unshift({ role: "system", content: system });
  const model = models.includes(settings.model) ? settings.model : models[0];
  return { model, messages, ...samplingFields(settings) };
}

async function generate(conversation) {
  const controller = new AbortController();
  const message = { role: "assistant", content: "", state: "streaming", stats: {} };
  running.set(conversation.id, controller);
  conversation.messages.push(message);
  save(conversation);
  open(conversation);
  try {
    if (!models.length) await loadModels();
    await receive(conversation, message, controller.signal);
    message.state = "done";
  } catch (error) {
    message.state = controller.signal.aborted ? "stopped" : "error";
    message.error = error.message;
    if (error instanceof ApiError && error.unavailable) watchHealth();
  }
  running.delete(conversation.id);
  if (conversations.includes(conversation)) save(conversation);
  paint();
  showRunning();
}

async function receive(conversation, message, signal) {
  const started = performance.now();
  const { stats } = message;
  for await (const { text, finishReason, usage } of streamChat(request(conversation), signal)) {
    if (text) stats.firstTokenMs ??= performance.now() - started;
    message.content += text;
    message.finishReason = finishReason;
    if (usage) addUsage(stats, usage, performance.now() - started);
    paint();
  }
}

function addUsage(stats, usage, elapsedMs) {
  stats.promptTokens = usage.prompt_tokens;
  stats.completionTokens = usage.completion_tokens;
  stats.cachedTokens = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const decodeMs = elapsedMs - (stats.firstTokenMs ?? 0);
  if (usage.completion_tokens > 1) stats.tokensPerSecond = ((usage.completion_tokens - 1) * 1000) / decodeMs;
}

let painting = false;

/** Redraw the growing answer, at most once a frame. */
function paint() {
  if (painting) return;
  painting = true;
  requestAnimationFrame(() => {
    painting = false;
    answer?.update();
    follower.grown();
  });
}

// ---- the server's state --------------------------------------------------------------

async function loadModels() {
  models = await getModels();
  byId("model").textContent = models[0] ?? "";
}

/** Ask /health until the server is ready, and say why it is not. */
async function watchHealth() {
  if (watching) return;
  watching = true;
  const banner = byId("banner");
  for (let health = await getHealth(); !health.ready; health = await getHealth()) {
    banner.textContent = health.reason;
    banner.hidden = false;
    await new Promise((resolve) => setTimeout(resolve, RETRY_HEALTH_MS));
  }
  banner.hidden = true;
  watching = false;
  await loadModels().catch((error) => toast(error.message));
}

// ---- events --------------------------------------------------------------------------

function submit() {
  const text = prompt.value.trim();
  if (!text || running.has(current.id)) return;
  prompt.value = "";
  resize();
  ask(text);
}

function resize() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
  showRunning();
}

function listen() {
  prompt.addEventListener("input", resize);
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const controller = running.get(current.id);
    if (controller) controller.abort();
    else submit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) running.get(current.id)?.abort();
  });
  byId("new").addEventListener("click", () => open(newConversation()));
  byId("open-settings").addEventListener("click", () => openSettings(byId("settings"), models));
  byId("menu").addEventListener("click", () => {
    const isOpen = document.body.classList.toggle("menu-open");
    byId("menu").setAttribute("aria-expanded", String(isOpen));
  });
  byId("main").addEventListener("click", (event) => {
    if (!event.target.closest("#menu")) document.body.classList.remove("menu-open");
  });
  window.addEventListener("pagehide", () => {
    for (const id of running.keys()) saveConversation(conversations.find((one) => one.id === id));
  });
}

function start() {
  for (const { messages } of conversations) {
    const last = messages.at(-1);
    if (last?.state === "streaming") last.state = "stopped"; // the page was closed on it
  }
  byId("new").prepend(icon("plus"));
  byId("menu").append(icon("menu"));
  byId("open-settings").append(icon("sliders"));
  byId("latest").append(icon("down"));
  listen();
  open(conversations.find(({ id }) => id === location.hash.slice(1)) ?? current);
  watchHealth();
}

start();
