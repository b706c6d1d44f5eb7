// An answer's text as safe HTML, its marks `[n]` as buttons that open the source.

import DOMPurify from "../vendor/dompurify/purify.es.mjs";
import { marked } from "../vendor/marked/marked.esm.js";
import { make } from "./dom.js";

// No pictures, no links: an answer repeats what strangers wrote, and must not send anybody anywhere.
const TAGS = [
  "p", "br", "strong", "em", "del", "code", "pre", "blockquote", "hr", "ul", "ol", "li",
  "h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "sub", "sup",
];
const MARK = /\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]/g;

/**
 * @param {string} text markdown
 * @param {Map<number, object>} sources by the number of their mark
 * @param {(source: object) => void} onSource
 * @returns {DocumentFragment}
 */
export function rendered(text, sources, onSource) {
  const html = marked.parse(text, { gfm: true, breaks: true });
  const fragment = DOMPurify.sanitize(html, {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: [],
    RETURN_DOM_FRAGMENT: true,
  });
  for (const node of textNodes(fragment)) replaceMarks(node, sources, onSource);
  return fragment;
}

function textNodes(root) {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    if (!walker.currentNode.parentElement?.closest("code")) found.push(walker.currentNode);
  }
  return found;
}

function replaceMarks(node, sources, onSource) {
  const parts = [];
  let from = 0;
  for (const match of node.data.matchAll(MARK)) {
    const numbers = match[1].split(",").map(Number);
    if (!numbers.every((n) => sources.has(n))) continue; // a mark for nothing stays text
    parts.push(node.data.slice(from, match.index));
    parts.push(...numbers.map((n) => chip(sources.get(n), onSource)));
    from = match.index + match[0].length;
  }
  if (parts.length) node.replaceWith(...parts, node.data.slice(from));
}

/** A source's number, which opens it. */
export function chip(source, onSource) {
  const { n, filename, page } = source;
  return make(
    "button",
    {
      type: "button",
      class: "chip",
      title: `${filename}, page ${page}`,
      "aria-label": `Source ${n}: ${filename}, page ${page}`,
      onclick: () => onSource(source),
    },
    String(n),
  );
}
