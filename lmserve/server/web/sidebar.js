// The list of conversations: open, rename, delete.

import { el, iconButton } from "./dom.js";

function renameField(conversation, onDone) {
  const field = el("input", { value: conversation.title, "aria-label": "Conversation name", maxlength: "80" });
  let done = false;
  const finish = (keep) => {
    if (done) return; // removing the field blurs it, which would finish again
    done = true;
    onDone(keep ? field.value.trim() : "");
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

/** Show `conversations` in `list`; `actions` has open, rename and remove. */
export function renderSidebar(list, conversations, current, actions) {
  const item = (conversation) => {
    const isCurrent = conversation === current;
    const open = el("button", {
      class: "conversation", type: "button", title: conversation.title,
      "aria-current": isCurrent ? "true" : null, onclick: () => actions.open(conversation),
    }, conversation.title);
    const row = el("li", { class: isCurrent ? "current" : "" }, open,
      iconButton("edit", "Rename", () => {
        const field = renameField(conversation, (title) => actions.rename(conversation, title));
        row.replaceChildren(field);
        field.select();
      }),
      iconButton("trash", "Delete", () => actions.remove(conversation)));
    return row;
  };
  list.replaceChildren(...conversations.map(item));
}
