// What is told of an answer in small letters: how it ended, what it took; and of a wait.

const REASONS = {
  max_output_tokens: "token limit reached",
  steered: "interrupted",
  server_restart: "cut short: the server was restarted",
  server_shutdown: "cut short: the server was stopped",
  abandoned: "stopped: nobody was reading",
  deadline: "out of time",
};

function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

function seconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

/** Why it is not whole; "" where it is. */
export function ending({ state, reason }) {
  if (state === "cancelled") return "stopped";
  if (state !== "incomplete") return "";
  return REASONS[reason] ?? "incomplete";
}

/** The line under an answer. */
export function figures(shown) {
  const { usage, tokensPerSecond, firstMs } = shown;
  const parts = [ending(shown)];
  if (usage) {
    const reused = usage.input_tokens_details.cached_tokens;
    parts.push(`${reused} of ${plural(usage.input_tokens, "token")} reused`);
  }
  if (tokensPerSecond) parts.push(`${tokensPerSecond.toFixed(tokensPerSecond < 10 ? 1 : 0)} tok/s`);
  if (firstMs && usage) parts.push(`first token ${seconds(firstMs)}`);
  return parts.filter(Boolean).join(" · ");
}

/** What is told while others are before it. */
export function wait({ position, estimate_s: estimate }) {
  const before = position > 0 ? `${position} before you` : "You are next";
  if (estimate === null) return before;
  return `${before}, about ${Math.max(1, Math.round(estimate))} s`;
}
