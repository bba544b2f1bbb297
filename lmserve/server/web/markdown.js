// A small, safe Markdown: model text becomes DOM nodes, and text stays text.
// Paragraphs, fences, headings, lists, quotes, tables, rules; code, bold, italic, strike, links.

import { codeBlock, el } from "./dom.js";

const MAX_DEPTH = 8; // nested lists and quotes; deeper ones are shown as plain text

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$/;
const QUOTE = /^ {0,3}>\s?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +)(?=\S)/;
const TABLE_RULE = /^ {0,3}\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)+\|?\s*$/;

const INLINE = new RegExp(
  [
    "\\\\(?<escaped>[\\\\`*_{}\\[\\]()#+.!~|>-])",
    "(?<ticks>`+)(?<code>.+?)(?<!`)\\k<ticks>(?!`)",
    "\\*\\*(?=\\S)(?<bold>.+?)\\*\\*",
    "\\*(?<italic>[^*\\s](?:[^*]*[^*\\s])?)\\*",
    "(?<![\\w_])_(?<under>[^_\\s](?:[^_]*[^_\\s])?)_(?![\\w_])",
    "~~(?<strike>[^~]+)~~",
    "\\[(?<label>[^\\[\\]]+)\\]\\((?<href>[^()\\s]+(?:\\([^()\\s]*\\)[^()\\s]*)?)\\)",
    "(?<url>https?://[^\\s<>\"'`)\\]]*[^\\s<>\"'`)\\].,;:!?])",
  ].join("|"),
  "gs",
);

function link(href, children, source) {
  let url = null;
  try {
    url = new URL(href);
  } catch {
    return source; // relative or malformed: leave the text as written
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") return source;
  return el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer" }, children);
}

function inlineNode(match) {
  const found = match.groups;
  if (found.escaped) return found.escaped;
  if (found.code) return el("code", {}, found.code.trim() || found.code);
  if (found.bold) return el("strong", {}, inline(found.bold));
  if (found.italic ?? found.under) return el("em", {}, inline(found.italic ?? found.under));
  if (found.strike) return el("s", {}, inline(found.strike));
  if (found.href) return link(found.href, [found.label], match[0]);
  return link(found.url, [found.url], match[0]);
}

function inline(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(text.slice(end, match.index), inlineNode(match));
    end = match.index + match[0].length;
  }
  return [...nodes, text.slice(end)];
}

function startsBlock(line) {
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line));
}

/** Lines from `start` while `belongs(line, index)`; gives the index after them. */
function extent(lines, start, belongs) {
  let end = start;
  while (end < lines.length && belongs(lines[end], end)) end += 1;
  return end;
}

function fenceEnd(lines, start) {
  const mark = FENCE.exec(lines[start])[1];
  const close = extent(lines, start + 1, (line) => {
    const text = line.trim();
    return !(text.startsWith(mark) && text === mark[0].repeat(text.length));
  });
  return Math.min(close + 1, lines.length);
}

function listEnd(lines, start) {
  const belongs = (line) => ITEM.test(line) || /^ {2,}\S/.test(line);
  return extent(lines, start, (line, index) => {
    if (index === start || belongs(line)) return true;
    if (line.trim()) return !startsBlock(line) && lines[index - 1].trim() !== "";
    return index + 1 < lines.length && belongs(lines[index + 1]);
  });
}

function blockEnd(lines, start) {
  const line = lines[start];
  if (FENCE.test(line)) return fenceEnd(lines, start);
  if (HEADING.test(line) || RULE.test(line)) return start + 1;
  if (QUOTE.test(line)) return extent(lines, start, (next) => QUOTE.test(next));
  if (ITEM.test(line)) return listEnd(lines, start);
  const goesOn = (next, index) => index === start || (next.trim() !== "" && !startsBlock(next));
  return extent(lines, start, goesOn);
}

/** Cut a text into the sources of its blocks. */
function splitBlocks(text) {
  const lines = text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n");
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (lines[at].trim() === "") {
      at += 1;
      continue;
    }
    const end = blockEnd(lines, at);
    blocks.push(lines.slice(at, end).join("\n"));
    at = end;
  }
  return blocks;
}

function fence(lines) {
  const [, mark, language] = FENCE.exec(lines[0]);
  const last = lines.at(-1).trim();
  const closed = lines.length > 1 && last.startsWith(mark) && last === mark[0].repeat(last.length);
  return codeBlock(lines.slice(1, closed ? -1 : undefined).join("\n"), language);
}

function list(lines, depth) {
  const [, indent, bullet] = ITEM.exec(lines[0]);
  const ordered = /\d/.test(bullet);
  const items = [];
  for (const line of lines) {
    const match = ITEM.exec(line);
    if (match && match[1].length <= indent.length + 1) {
      items.push([line.slice(match[0].length)]);
    } else {
      items.at(-1).push(line.replace(/^ {1,4}/, ""));
    }
  }
  const node = el(ordered ? "ol" : "ul", { start: ordered ? parseInt(bullet, 10) : null });
  node.append(...items.map((item) => el("li", {}, renderBlocks(item.join("\n"), depth + 1))));
  return node;
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

function table(lines) {
  const row = (tag) => (line) => el("tr", {}, cells(line).map((cell) => el(tag, {}, inline(cell))));
  const body = el("tbody", {}, lines.slice(2).map(row("td")));
  return el("div", { class: "scroll-x" }, el("table", {}, el("thead", {}, row("th")(lines[0])), body));
}

function renderBlock(source, depth) {
  const lines = source.split("\n");
  if (FENCE.test(lines[0])) return fence(lines);
  const heading = HEADING.exec(lines[0]);
  if (heading) return el(`h${Math.min(heading[1].length + 2, 6)}`, {}, inline(heading[2]));
  if (RULE.test(lines[0])) return el("hr");
  if (depth < MAX_DEPTH && QUOTE.test(lines[0])) {
    const inner = lines.map((line) => line.replace(QUOTE, "")).join("\n");
    return el("blockquote", {}, renderBlocks(inner, depth + 1));
  }
  if (depth < MAX_DEPTH && ITEM.test(lines[0])) return list(lines, depth);
  if (lines.length > 1 && lines[0].includes("|") && TABLE_RULE.test(lines[1])) return table(lines);
  return el("p", {}, inline(source.trim()));
}

function renderBlocks(text, depth) {
  return splitBlocks(text).map((source) => renderBlock(source, depth));
}

const sources = new WeakMap(); // node → the source it shows

/**
 * Show `text` in `root`. Blocks that did not change keep their nodes, so that a selection
 * in an answer survives while the rest of it is still being written.
 */
export function renderMarkdown(root, text) {
  const blocks = splitBlocks(text);
  let same = 0;
  while (same < blocks.length && sources.get(root.children[same]) === blocks[same]) same += 1;
  while (root.children.length > same) root.lastChild.remove();
  for (const source of blocks.slice(same)) {
    const node = renderBlock(source, 0);
    sources.set(node, source);
    root.append(node);
  }
}
