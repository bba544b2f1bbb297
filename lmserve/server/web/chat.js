// The chat page: the list of conversations, the one that is open, and the composer.

import { getHealth, getModels } from "./api.js";
import { Composer } from "./composer.js";
import { Connection, isAway } from "./connection.js";
import { Conversation } from "./conversation.js";
import { el, icon } from "./dom.js";
import { banner, toast } from "./notices.js";
import { Follower } from "./scroll.js";
import { SessionList } from "./sessions.js";
import { openSettings, requestFields } from "./settings.js";
import { Sidebar, titleOf } from "./sidebar.js";
import { Thread } from "./thread.js";

const RETRY_HEALTH_MS = 1000;
const QUIET_MS = 1000; // a connection that is mended sooner is no news
const TITLE_LETTERS = 48;
const IDEAS = [
  "Explain how a rainbow forms, in three sentences",
  "Write a short poem about the sea",
  "Give me five ideas for a rainy Sunday",
  "Why is the sky blue?",
];

const byId = (id) => document.getElementById(id);
const connection = new Connection(onConnection);
const list = new SessionList(connection, onSessions, onFailure);
const opened = new Map(); // session id → Conversation: those looked at, which may still be answering
const follower = new Follower(byId("scroller"), byId("latest"));
const sidebar = new Sidebar(byId("conversations"), { open: ({ id }) => openById(id), rename, fork, remove, more: () => list.more() });
const composer = new Composer(byId("composer"), { send, stop: () => current.stop(), typed });
const thread = new Thread(byId("log"), {
  edit: (id, text) => say(() => current.edit(id, text)),
  regenerate: (id) => say(() => current.regenerate(id)),
  goOn: (id) => say(() => current.goOn(id)),
  retry: (shown) => say(() => current.retry(shown)),
  switchTo: (id) => {
    current.show(id);
    paintNow();
  },
  fork: (id) => fork({ id: current.id }, id),
});
const welcome = makeWelcome();

let models = [];
let isWatching = false;
let isPainting = false;
let current = newConversation();

// ---- conversations -------------------------------------------------------------------

function newConversation(id = null) {
  const conversation = new Conversation(connection, id, () => requestFields(models), {
    changed: () => conversation === current && paint(),
    failed: onFailure,
    unsaid: (text, error) => {
      toast(error.message);
      if (conversation === current) composer.restore(text);
    },
    begun: (text) => onBegun(conversation, text),
  });
  return conversation;
}

/** A new one has its id from the server now, and its title from what was asked first. */
async function onBegun(conversation, text) {
  const { id } = conversation;
  opened.set(id, conversation);
  if (conversation === current) history.replaceState(null, "", `#${id}`);
  const title = text.split("\n")[0].slice(0, TITLE_LETTERS);
  await attempt(({ sessions }) => sessions.rename(id, title));
  list.look();
}

function openNew() {
  show(newConversation());
}

async function openById(id) {
  const conversation = opened.get(id) ?? newConversation(id);
  opened.set(id, conversation);
  show(conversation);
  try {
    await conversation.load();
    follower.jump();
  } catch (error) {
    if (error.status === 404) forget(id, "This conversation is no longer there.");
    else onFailure(error);
  }
}

function show(conversation) {
  current = conversation;
  const hash = conversation.id === null ? "" : `#${conversation.id}`;
  if (location.hash !== hash) history.pushState(null, "", hash || location.pathname);
  closeMenu();
  paintNow();
  follower.jump();
  composer.focus();
}

function forget(id, text) {
  opened.delete(id);
  if (current.id !== id) return;
  toast(text);
  openNew();
}

async function rename(session, title) {
  if (title) await attempt(({ sessions }) => sessions.rename(session, title));
  list.look();
}

async function fork(session, at) {
  const made = await attempt(({ sessions }) => sessions.fork(session, { at }));
  if (!made) return;
  list.look();
  await openById(made.id);
  toast("This is the fork: what is said here changes nothing there.");
}

async function remove({ id }) {
  const kept = await attempt(({ sessions }) => sessions.export(id));
  if (!kept || (await attempt(async ({ sessions }) => (await sessions.delete(id), true))) === null) return;
  opened.delete(id);
  if (current.id === id) openNew();
  list.look();
  toast("Chat deleted.", "Undo", async () => {
    await attempt(({ sessions }) => sessions.import(kept, { id }));
    list.look();
  });
}

/** What `work(client)` gives; null, and a word about it, where it fails. */
async function attempt(work) {
  try {
    return await connection.ask(work);
  } catch (error) {
    toast(error.message);
    return null;
  }
}

// ---- what is said --------------------------------------------------------------------

function send(text) {
  if (current.isBusy) current.steer(text);
  else say(() => current.ask(text));
}

function say(begin) {
  begin();
  follower.jump();
  composer.focus();
}

function typed(text) {
  const { instructions } = requestFields(models); // with which the prompt would be another
  if (current.id === null || current.isBusy || instructions) return;
  connection.client.draft(current.id).set(text);
}

// ---- what is on the screen -----------------------------------------------------------

/** At most once a frame. */
function paint() {
  if (isPainting) return;
  isPainting = true;
  requestAnimationFrame(paintNow);
}

function paintNow() {
  isPainting = false;
  const { isBusy } = current;
  thread.show(current.line(), welcome);
  byId("log").setAttribute("aria-busy", String(isBusy));
  composer.show(isBusy);
  showTitle();
  follower.grown();
}

function showTitle() {
  const session = list.find(current.id);
  const title = session ? titleOf(session) : "New chat";
  byId("title").textContent = title;
  document.title = `${title} · lmserve`;
  sidebar.show(list.sessions, current.id, list.hasMore);
}

function makeWelcome() {
  const ideas = IDEAS.map((idea) => el("button", { class: "idea", type: "button", onclick: () => send(idea) }, idea));
  return el("div", { class: "welcome" },
    el("img", { src: "/web/icon.svg", alt: "", width: "48", height: "48" }),
    el("h2", {}, "What would you like to know?"),
    el("div", { class: "ideas" }, ideas));
}

function closeMenu() {
  document.body.classList.remove("menu-open");
  byId("menu").setAttribute("aria-expanded", "false");
}

// ---- the server's state --------------------------------------------------------------

let quiet = 0;

function onConnection(state) {
  clearTimeout(quiet);
  if (state !== "connecting") banner("connection", "");
  else quiet = setTimeout(() => banner("connection", "Connecting to the server…"), QUIET_MS);
}

function onSessions() {
  showTitle();
  const session = list.find(current.id);
  if (session) current.sync(session).catch(onFailure);
  else if (current.id !== null) lookFor(current);
}

/** It is further down in the list, or, behind a distributor, another node's; or it is gone. */
async function lookFor(conversation) {
  const { id } = conversation;
  try {
    await conversation.sync(await connection.client.sessions.get(id));
  } catch (error) {
    if (error.code === "session_not_found") forget(id, "This conversation was deleted.");
    else onFailure(error);
  }
}

function onFailure(error) {
  if (error.status === 404 && error.code === "session_not_found") list.look();
  if (isAway(error)) watchHealth();
}

/** Asks /health until the server is ready, and says why it is not. */
async function watchHealth() {
  if (isWatching) return;
  isWatching = true;
  for (let health = await getHealth(); !health.ready; health = await getHealth()) {
    banner("health", health.reason);
    await new Promise((resolve) => setTimeout(resolve, RETRY_HEALTH_MS));
  }
  banner("health", "");
  isWatching = false;
}

async function loadModels() {
  try {
    models = await getModels();
  } catch (error) {
    if (error.status === 401) toast(error.message);
  }
  byId("model").textContent = models[0] ?? "";
}

async function begin() {
  watchHealth().then(() => models.length || loadModels());
  await loadModels();
  await list.watch();
  if (location.hash) await openById(location.hash.slice(1));
}

// ---- events --------------------------------------------------------------------------

function listen() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) current.stop();
  });
  byId("new").addEventListener("click", openNew);
  byId("open-settings").addEventListener("click", () => openSettings(byId("settings"), models));
  byId("menu").addEventListener("click", () => {
    const isOpen = document.body.classList.toggle("menu-open");
    byId("menu").setAttribute("aria-expanded", String(isOpen));
  });
  byId("main").addEventListener("click", (event) => {
    if (!event.target.closest("#menu")) closeMenu();
  });
  window.addEventListener("popstate", () => {
    const id = location.hash.slice(1);
    if (id && id !== current.id) openById(id);
    else if (!id && current.id !== null) openNew();
  });
}

byId("new").prepend(icon("plus"));
byId("menu").append(icon("menu"));
byId("open-settings").append(icon("sliders"));
byId("latest").append(icon("down"));
listen();
paintNow();
begin();
