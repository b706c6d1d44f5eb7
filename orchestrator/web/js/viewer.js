// A document's page beside its answer, with the passage marked where it stands.

import * as pdfjs from "../vendor/pdfjs/pdf.min.mjs";
import * as api from "./api.js";
import { find, make } from "./dom.js";
import { key } from "./key.js";

const VENDOR = new URL("../vendor/pdfjs/", import.meta.url).href;
const ZOOMS = [0.5, 0.75, 1, 1.25, 1.5, 2, 3];
pdfjs.GlobalWorkerOptions.workerSrc = `${VENDOR}pdf.worker.min.mjs`;

export class Viewer {
  constructor() {
    this.panel = find("#viewer");
    this.frame = find("#sheet-frame");
    this.zoom = 1;
    this.turn = 0; // what is drawn for an earlier one is not shown any more
    const on = (id, act) => find(id).addEventListener("click", act);
    on("#viewer-close", () => this.close());
    on("#page-back", () => this.#go(-1));
    on("#page-on", () => this.#go(1));
    on("#zoom-out", () => this.#scale(-1));
    on("#zoom-in", () => this.#scale(1));
    this.panel.addEventListener("keydown", (event) => {
      if (event.key === "PageUp") this.#go(-1);
      if (event.key === "PageDown") this.#go(1);
    });
    let waiting;
    new ResizeObserver(() => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.file && !this.panel.hidden && this.#draw(), 150);
    }).observe(this.panel);
  }

  get isOpen() {
    return !this.panel.hidden;
  }

  /** Show a source: its document at its page, the passage marked if its place is sure. */
  async open(source) {
    if (this.panel.hidden) this.opener = document.activeElement;
    this.panel.hidden = false;
    document.body.classList.add("reading");
    find("#viewer-title").textContent = source.filename;
    this.source = source;
    this.page = source.page;
    this.panel.focus();
    try {
      await this.#load(source.document_id);
      await this.#draw();
    } catch (error) {
      this.#note(`The document cannot be shown: ${error.message}`);
    }
  }

  /** Back to where the reader came from. */
  close() {
    this.panel.hidden = true;
    document.body.classList.remove("reading");
    if (this.opener?.isConnected) this.opener.focus();
  }

  async #load(id) {
    if (this.id === id) return;
    this.file = null;
    await this.loading?.destroy();
    this.loading = pdfjs.getDocument({
      url: api.fileUrl(id),
      httpHeaders: key.headers,
      cMapUrl: `${VENDOR}cmaps/`,
      standardFontDataUrl: `${VENDOR}standard_fonts/`,
      wasmUrl: `${VENDOR}wasm/`,
      useWasm: false, // compiling it would need a hole in the page's policy
      isEvalSupported: false,
      enableXfa: false,
      stopAtErrors: false,
    });
    this.file = await this.loading.promise;
    this.id = id;
  }

  async #draw() {
    const turn = ++this.turn;
    const { page: number, source } = this;
    find("#page-words").textContent = `Page ${number} of ${this.file.numPages}`;
    find("#page-back").disabled = number <= 1;
    find("#page-on").disabled = number >= this.file.numPages;
    const page = await this.file.getPage(number);
    const plain = page.getViewport({ scale: 1 });
    const width = Math.max(200, this.frame.clientWidth - 24) * this.zoom;
    const viewport = page.getViewport({ scale: width / plain.width });
    const canvas = await painted(page, viewport);
    const text = make("div", { class: "textLayer", id: "text-layer" });
    text.style.setProperty("--total-scale-factor", String(viewport.scale));
    await new pdfjs.TextLayer({ textContentSource: page.streamTextContent(), container: text, viewport }).render();
    if (turn !== this.turn) return;
    find("#canvas").replaceWith(canvas);
    find("#text-layer").replaceWith(text);
    const sheet = find("#sheet");
    sheet.style.width = `${viewport.width}px`;
    sheet.style.height = `${viewport.height}px`;
    await this.#mark(source, turn);
  }

  /** Mark the passage; nothing if its place is not sure, which is said. */
  async #mark(source, turn) {
    const marks = find("#marks");
    marks.replaceChildren();
    this.#note("");
    if (source.page !== this.page || source.char_end === undefined) return;
    let boxes = [];
    try {
      boxes = await api.boxes(source);
    } catch {
      boxes = []; // the page is there; only the mark is not
    }
    if (turn !== this.turn) return;
    if (!boxes.length) this.#note("Where on this page the passage stands is not sure, so nothing is marked.");
    for (const [left, top, right, bottom] of boxes) {
      const mark = make("div", { class: "mark" });
      Object.assign(mark.style, {
        left: `${left * 100}%`,
        top: `${top * 100}%`,
        width: `${(right - left) * 100}%`,
        height: `${(bottom - top) * 100}%`,
      });
      marks.append(mark);
    }
    if (boxes.length) marks.firstElementChild.scrollIntoView({ block: "center", inline: "nearest" });
  }

  #go(step) {
    const page = this.page + step;
    if (!this.file || page < 1 || page > this.file.numPages) return;
    this.page = page;
    this.frame.scrollTop = 0;
    this.#draw();
  }

  #scale(step) {
    const place = ZOOMS.indexOf(this.zoom) + step;
    if (!this.file || !(place in ZOOMS)) return;
    this.zoom = ZOOMS[place];
    this.#draw();
  }

  #note(words) {
    const note = find("#viewer-note");
    note.hidden = !words;
    note.textContent = words;
  }
}

async function painted(page, viewport) {
  const sharp = window.devicePixelRatio || 1;
  const canvas = make("canvas", { id: "canvas" });
  canvas.width = Math.floor(viewport.width * sharp);
  canvas.height = Math.floor(viewport.height * sharp);
  canvas.style.width = `${viewport.width}px`;
  canvas.style.height = `${viewport.height}px`;
  const transform = sharp === 1 ? null : [sharp, 0, 0, sharp, 0, 0];
  await page.render({ canvas, viewport, transform }).promise;
  return canvas;
}
