// The documents: what is there, what is on its way, and which of them are asked.

import * as api from "./api.js";
import { count, find, make } from "./dom.js";

const PAGE = 100;
const UPLOADS_AT_ONCE = 3;
const AGAIN_S = 5;
const FINISHED = new Set(["ready", "failed", "refused"]);

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

export class Library {
  /** @param {{onOpen: (source: object) => void}} to */
  constructor({ onOpen }) {
    this.onOpen = onOpen;
    this.onChange = () => {};
    this.entries = new Map(); // key -> {document, row, chosen}
    this.next = null;
    this.waiting = [];
    this.sending = 0;
    this.uploads = 0;
    this.list = find("#documents");
    this.name = find("#collection");
    this.name.value = localStorage.getItem("collection") ?? "default";
    this.name.addEventListener("change", () => this.#changeCollection());
    find("#files").addEventListener("change", (event) => {
      this.take([...event.target.files]);
      event.target.value = "";
    });
    const drop = find("#drop");
    drop.addEventListener("dragover", () => drop.classList.add("over"));
    for (const over of ["dragleave", "drop"]) {
      drop.addEventListener(over, () => drop.classList.remove("over"));
    }
    find("#more").addEventListener("click", () => this.#load());
  }

  /** Show what is there; ask again until the service answers. */
  async start() {
    for (;;) {
      try {
        await this.#load();
        return;
      } catch (error) {
        this.#say(error.message);
        await sleep(AGAIN_S);
      }
    }
  }

  /** What a question goes to: the collection, or those of its documents that are chosen. */
  scope() {
    const ids = [...this.entries.values()]
      .filter(({ chosen, document }) => chosen && document.status === "ready")
      .map(({ document }) => document.id);
    return { collection: this.#collection(), document_ids: ids };
  }

  /** Upload these files, a few at a time. */
  take(files) {
    for (const file of files) {
      const key = `upload-${(this.uploads += 1)}`;
      this.#put(key, { filename: file.name, status: "waiting", share: 0 }, { first: true });
      this.waiting.push({ file, key });
    }
    this.#sendNext();
  }

  #collection() {
    return this.name.value.trim() || "default";
  }

  #changeCollection() {
    localStorage.setItem("collection", this.#collection());
    this.entries.clear();
    this.list.replaceChildren();
    this.next = null;
    this.start();
  }

  async #load() {
    const query = { collection: this.#collection(), limit: PAGE };
    if (this.next) query.after = this.next;
    const { documents, next } = await api.documents(query);
    if (query.collection !== this.#collection()) return; // another was chosen meanwhile
    this.next = next;
    find("#more").hidden = next === null;
    for (const document of documents) {
      this.#put(document.id, document);
      if (!FINISHED.has(document.status)) this.#follow(document.id);
    }
    this.#tell();
  }

  #sendNext() {
    while (this.sending < UPLOADS_AT_ONCE && this.waiting.length) {
      this.sending += 1;
      this.#send(this.waiting.shift()).finally(() => {
        this.sending -= 1;
        this.#sendNext();
      });
    }
  }

  async #send({ file, key }) {
    const shown = (share) => this.#put(key, { filename: file.name, status: "uploading", share });
    shown(0);
    try {
      const document = await api.upload(file, this.#collection(), shown);
      if (document.status === "refused") throw new api.Told(document.error.message);
      this.#replaceKey(key, document);
      if (!FINISHED.has(document.status)) this.#follow(document.id);
    } catch (error) {
      const reason = { message: error.message };
      this.#put(key, { filename: file.name, status: "refused", error: reason, file });
    }
    this.#tell();
  }

  /** Keep a document's row up to date until it is finished, however often the service restarts. */
  async #follow(id) {
    while (this.entries.has(id)) {
      try {
        for await (const document of api.follow(id)) {
          if (!this.entries.has(id)) return;
          this.#put(id, document);
        }
      } catch (error) {
        if (error.status === 404) return this.#drop(id);
      }
      if (FINISHED.has(this.entries.get(id)?.document.status)) return this.#tell();
      await sleep(AGAIN_S);
    }
  }

  #put(key, document, { first = false } = {}) {
    const before = this.entries.get(key);
    const entry = { document, chosen: before?.chosen ?? false, row: null };
    entry.row = this.#row(key, entry);
    if (before) before.row.replaceWith(entry.row);
    else if (first) this.list.prepend(entry.row);
    else this.list.append(entry.row);
    this.entries.set(key, entry);
  }

  #replaceKey(key, document) {
    const { row } = this.entries.get(key);
    this.entries.delete(key);
    this.entries.get(document.id)?.row.remove(); // the same bytes were there already
    const entry = { document, chosen: false, row: null };
    entry.row = this.#row(document.id, entry);
    row.replaceWith(entry.row);
    this.entries.set(document.id, entry);
  }

  #drop(key) {
    this.entries.get(key)?.row.remove();
    this.entries.delete(key);
    this.#tell();
  }

  #row(key, entry) {
    const { document } = entry;
    const ready = document.status === "ready";
    const name = ready
      ? make("button", { type: "button", class: "name", onclick: () => this.onOpen({ ...document, document_id: document.id, page: 1 }) }, document.filename)
      : make("span", { class: "name" }, document.filename);
    const choose = make("input", {
      type: "checkbox",
      disabled: !ready,
      checked: entry.chosen,
      "aria-label": `Ask only ${document.filename}`,
      onchange: (event) => {
        this.entries.get(key).chosen = event.target.checked;
        this.#tell();
      },
    });
    const share = progress(document);
    return make(
      "li",
      { class: document.status, "data-document": key },
      make("div", { class: "document-row" }, choose, name, ...this.#buttons(key, document)),
      make("p", { class: "how" }, words(document)),
      share === null
        ? null
        : make("progress", { max: 1, value: share, "aria-label": `How far ${document.filename} is` }),
    );
  }

  #buttons(key, document) {
    const button = (words, label, act) =>
      make("button", { type: "button", class: "plain", "aria-label": label, onclick: act }, words);
    const { filename, status } = document;
    const again = () => this.#again(key, document);
    const gone = () => this.#remove(key, document);
    return [
      status === "failed" || status === "refused" ? button("Try again", `Try ${filename} again`, again) : null,
      FINISHED.has(status) ? button("✕", `Remove ${filename}`, gone) : null,
    ].filter(Boolean);
  }

  async #again(key, document) {
    if (document.file) {
      this.waiting.push({ file: document.file, key });
      return this.#sendNext();
    }
    try {
      this.#put(key, await api.retryDocument(key));
      await this.#follow(key);
    } catch (error) {
      this.#say(error.message);
    }
  }

  async #remove(key, document) {
    if (document.status === "refused") return this.#drop(key);
    if (!confirm(`Remove ${document.filename}? It cannot be asked any more.`)) return;
    try {
      await api.removeDocument(key);
      this.#drop(key);
    } catch (error) {
      if (error.status === 404) this.#drop(key);
      else this.#say(error.message);
    }
  }

  #tell() {
    const documents = [...this.entries.values()].map(({ document }) => document);
    const ready = documents.filter(({ status }) => status === "ready").length;
    const chosen = this.scope().document_ids.length;
    if (!documents.length) this.#say("Nothing here yet. Add a PDF to ask about it.");
    else if (chosen) this.#say(`Questions go to the ${count(chosen, "document")} you chose.`);
    else if (this.next) this.#say("Questions go to all documents of the collection.");
    else this.#say(`Questions go to all that is ready: ${count(ready, "document")}.`);
    this.onChange();
  }

  #say(text) {
    find("#scope").textContent = text;
  }
}

/** How far a document is, from 0 to 1; null if there is nothing to wait for, or nobody knows. */
function progress({ status, share, pages, pages_done: done }) {
  if (status === "uploading") return share;
  if (status === "parsing" && pages) return done / pages;
  return null;
}

function words({ status, share, pages, pages_done: done, error, warning }) {
  switch (status) {
    case "waiting":
      return "Waits to be uploaded";
    case "uploading":
      return `Uploading, ${Math.round(share * 100)} %`;
    case "queued":
      return "Waits to be read";
    case "parsing":
      return pages ? `Reading page ${Math.min(done + 1, pages)} of ${pages}` : "Reading";
    case "embedding":
      return "Making it searchable";
    case "ready":
      return [count(pages, "page"), warning].filter(Boolean).join(". ");
    default:
      return error?.message ?? "It could not be read.";
  }
}
