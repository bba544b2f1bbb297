// What the browser remembers: one localStorage entry a conversation, so that two tabs
// never overwrite each other's, and one entry for the settings.

const CONVERSATION = "lmserve.chat.";
const SETTINGS = "lmserve.settings";

export const EMPTY_SETTINGS = { model: "", system: "", temperature: "", top_p: "", max_tokens: "", seed: "" };

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null; // damaged by hand or by another version: as if it were not there
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false; // the quota is used up, or storage is off
  }
}

export function newConversation() {
  // crypto.randomUUID needs https or localhost; this works on any host.
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  const id = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, title: "", updated: Date.now(), messages: [] };
}

/** Every stored conversation, latest first. */
export function loadConversations() {
  return Object.keys(localStorage)
    .filter((key) => key.startsWith(CONVERSATION))
    .map(read)
    .filter((conversation) => Array.isArray(conversation?.messages))
    .sort((a, b) => b.updated - a.updated);
}

export function saveConversation(conversation) {
  return write(CONVERSATION + conversation.id, conversation);
}

export function deleteConversation(id) {
  localStorage.removeItem(CONVERSATION + id);
}

export function loadSettings() {
  return { ...EMPTY_SETTINGS, ...read(SETTINGS) };
}

export function saveSettings(settings) {
  return write(SETTINGS, settings);
}
