// The service's HTTP API, as the page uses it. What goes wrong is a `Told`: words, and what to do.

import { readEvents } from "./events.js";
import { key } from "./key.js";

const SILENT_S = 45; // the service says something every ten seconds, or it is gone

/** Something that did not work, in words for the reader. */
export class Told extends Error {
  /**
   * @param {string} message
   * @param {{code?: string, status?: number, retryAfterS?: number | null}} facts
   */
  constructor(message, { code = "unknown", status = 0, retryAfterS = null } = {}) {
    super(message);
    this.code = code;
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

const UNREACHABLE = "The service cannot be reached. It may be restarting; try again in a moment.";

/** The answer to a request; a Told if it is no success. */
async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...options.headers, ...key.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Told(UNREACHABLE, { code: "unreachable" });
  }
  if (!response.ok) throw told(response.status, await response.text(), response.headers);
  return response;
}

function told(status, text, headers) {
  const retryAfterS = Number(headers.get("retry-after")) || null;
  try {
    const { message, code } = JSON.parse(text).error;
    const words = code === "invalid_api_key" ? key.ask() : message;
    return new Told(words, { code, status, retryAfterS });
  } catch {
    return new Told(`The service answered ${status}, without saying why.`, { status, retryAfterS });
  }
}

const json = async (path, options) => (await call(path, options)).json();

export const status = () => json("/status");
export const documents = (query) => json(`/documents?${new URLSearchParams(query)}`);
export const removeDocument = (id) => call(`/documents/${id}`, { method: "DELETE" });
export const retryDocument = (id) => json(`/documents/${id}/retry`, { method: "POST" });
export const fileUrl = (id) => `/documents/${encodeURIComponent(id)}/file`;

/** Where a passage stands on its page: [left, top, right, bottom] as shares; [] if that is not sure. */
export async function boxes({ document_id, page, char_start, char_end }) {
  const where = new URLSearchParams({ page, start: char_start, end: char_end });
  return (await json(`/documents/${document_id}/boxes?${where}`)).boxes;
}

/** Follow a document until it is ready or failed. */
export async function* follow(id, signal) {
  const response = await call(`/documents/${id}/events`, { signal });
  for await (const { data } of readEvents(response.body, SILENT_S)) yield data;
}

/** The events of an answer, `{event, data}`; ends with `done`, or throws a Told. */
export async function* ask(body, signal) {
  const response = await call("/ask", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, priority: "interactive" }),
    signal,
  });
  for await (const event of readEvents(response.body, SILENT_S)) {
    if (event.event === "error") {
      const { message, code, retry_after_s: retryAfterS } = event.data.error;
      throw new Told(message, { code, retryAfterS });
    }
    yield event;
    if (event.event === "done") return;
  }
  throw new Told("The answer broke off: the connection was closed.", { code: "cut" });
}

/**
 * Send one PDF; resolves to its document.
 *
 * @param {(share: number) => void} onProgress share of the bytes that are sent, 0 to 1
 */
export function upload(file, collection, onProgress) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append("collection", collection);
    form.append("file", file, file.name);
    const request = new XMLHttpRequest(); // fetch does not tell how much is sent
    request.open("POST", "/upload");
    for (const [name, value] of Object.entries(key.headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => onProgress(event.loaded / Math.max(event.total, 1));
    request.onerror = () => reject(new Told(UNREACHABLE, { code: "unreachable" }));
    request.onload = () => {
      const headers = { get: (name) => request.getResponseHeader(name) };
      if (request.status >= 400) return reject(told(request.status, request.responseText, headers));
      resolve(JSON.parse(request.responseText).documents[0]);
    };
    request.send(form);
  });
}
