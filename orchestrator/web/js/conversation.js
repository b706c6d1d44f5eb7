// Questions and their answers, one after the other; each goes on from the ones before it.

import * as api from "./api.js";
import { chip, rendered } from "./answer.js";
import { count, duration, find, make } from "./dom.js";

const REMEMBERED_TURNS = 6; // what goes along with a question takes room from its passages

export class Conversation {
  /** @param {{scope: () => object, onSource: (source: object) => void}} to */
  constructor({ scope, onSource, onAnswer }) {
    this.scope = scope;
    this.onSource = onSource;
    this.onAnswer = onAnswer;
    this.turns = [];
    this.question = find("#question");
    this.send = find("#send");
    find("#ask").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.current) this.cancel();
      else this.#ask(this.question.value);
    });
    this.question.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.current) this.#ask(this.question.value);
    });
    find("#anew").addEventListener("click", () => this.#anew());
    this.scopeChanged();
  }

  /** Give up the answer that is on its way, if there is one. */
  cancel() {
    this.current?.cancel();
  }

  /** Other documents are asked now. */
  scopeChanged() {
    const { collection, document_ids: ids } = this.scope();
    const where = ids.length ? count(ids.length, "chosen document") : `the collection ${collection}`;
    this.question.placeholder = `Ask ${where}`;
  }

  #anew() {
    this.cancel();
    this.turns = [];
    find("#turns").replaceChildren();
    find("#anew").hidden = true;
    this.question.focus();
  }

  async #ask(text) {
    if (!text.trim()) return this.question.focus();
    const history = this.turns.slice(-REMEMBERED_TURNS).flatMap((turn) => [
      { role: "user", content: turn.text },
      { role: "assistant", content: turn.answer },
    ]);
    const body = { question: text.trim(), history, ...this.scope() };
    const turn = new Turn(text.trim(), {
      onSource: this.onSource,
      onRetry: () => this.#retry(turn),
    });
    find("#turns").append(turn.element);
    this.question.value = "";
    find("#anew").hidden = false;
    await this.#run(turn, body);
  }

  async #retry(turn) {
    if (this.current) return;
    await this.#run(turn, { ...turn.body, ...this.scope() });
  }

  async #run(turn, body) {
    this.current = turn;
    this.send.textContent = "Cancel";
    this.send.classList.add("cancel");
    turn.element.scrollIntoView({ block: "nearest" });
    await turn.run(body);
    this.current = null;
    this.send.textContent = "Ask";
    this.send.classList.remove("cancel");
    if (turn.answer && !this.turns.includes(turn)) this.turns.push(turn);
    find("#said").textContent = turn.told;
    this.onAnswer();
  }
}

/** One question and what became of it. */
class Turn {
  constructor(text, { onSource, onRetry }) {
    this.text = text;
    this.answer = "";
    this.told = "";
    this.onSource = onSource;
    this.onRetry = onRetry;
    this.state = make("p", { class: "how" });
    this.banner = make("p", { class: "banner", hidden: true });
    this.shown = make("div", { class: "answer" });
    this.sources = make("div", { class: "sources" });
    this.element = make(
      "article",
      { class: "turn" },
      make("h3", {}, text),
      this.banner,
      this.shown,
      this.state,
      this.sources,
    );
  }

  /** Give the answer up. */
  cancel() {
    this.abort?.abort();
  }

  /** Ask, and show what comes until it is over, one way or the other; never throws. */
  async run(body) {
    this.body = body;
    this.abort = new AbortController();
    this.received = "";
    this.answer = "";
    this.byNumber = new Map();
    this.#clear();
    this.#wait("Looking through the documents");
    try {
      for await (const event of api.ask(body, this.abort.signal)) this.#take(event);
    } catch (error) {
      this.#failed(error);
    } finally {
      clearInterval(this.ticking);
      this.element.removeAttribute("aria-busy");
    }
  }

  #clear() {
    this.banner.hidden = true;
    for (const part of [this.shown, this.sources]) part.replaceChildren();
    this.element.setAttribute("aria-busy", "true");
    this.element.classList.remove("failed");
  }

  #take({ event, data }) {
    if (event === "queued") this.#queued(data);
    if (event === "sources") this.#found(data);
    if (event === "token") this.#more(data.text);
    if (event === "done") this.#done(data);
  }

  #queued({ position, eta_s: etaS }) {
    const soon = etaS === null ? "" : `, about ${duration(etaS)}`;
    this.#wait(`In the queue, place ${position}${soon}`);
  }

  #found({ citations, degraded }) {
    this.byNumber = new Map(citations.map((citation) => [citation.n, citation]));
    this.#lesser(degraded);
    this.#wait("Reading what was found");
  }

  #more(text) {
    this.received += text;
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = null;
      this.#draw();
    });
  }

  #draw() {
    if (this.passagesOnly) return; // they are listed as sources, each with its page
    this.shown.replaceChildren(rendered(this.received, this.byNumber, this.onSource));
    this.state.textContent = "";
    clearInterval(this.ticking);
  }

  #done(answer) {
    this.received = answer.answer;
    this.byNumber = new Map(answer.citations.map((citation) => [citation.n, citation]));
    this.#lesser(answer.degraded);
    this.answer = this.passagesOnly ? "" : answer.answer; // passages are nothing to go on from
    this.#draw();
    clearInterval(this.ticking);
    const shown = (citation) => citation.cited || this.passagesOnly;
    const cited = answer.citations.filter(shown);
    const rest = answer.citations.filter((citation) => !shown(citation));
    this.sources.replaceChildren(...[
      ...cited.map((citation) => this.#source(citation)),
      rest.length
        ? make("details", {}, make("summary", {}, cited.length ? `${count(rest.length, "more passage")} it had before it` : `${count(rest.length, "passage")} it had before it; it cites none`), ...rest.map((citation) => this.#source(citation)))
        : null,
    ].filter(Boolean));
    const length = answer.finish_reason === "length" ? "Cut off at its longest length. " : "";
    this.state.textContent = `${length}${(answer.timings_ms.total / 1000).toFixed(1)} s`;
    this.told = this.passagesOnly
      ? `No model answers now. ${count(cited.length, "passage")} found.`
      : `The answer is there, with ${count(cited.length, "cited source")}.`;
  }

  #source(citation) {
    const open = () => this.onSource(citation);
    return make(
      "div",
      { class: "source" },
      chip(citation, this.onSource),
      make("button", { type: "button", class: "name", onclick: open }, `${citation.filename}, page ${citation.page}`),
      make("p", {}, citation.text),
    );
  }

  #lesser(degraded) {
    this.banner.hidden = !degraded;
    this.passagesOnly = degraded?.level === "L3";
    if (!degraded) return;
    this.banner.title = degraded.reason;
    this.banner.textContent = {
      L1: `A shorter look than usual. ${degraded.reason}`,
      L2: `Another model answered. ${degraded.reason}`,
      L3: "No model answers now. These are the passages that fit your question best; ask again in a while.",
    }[degraded.level];
  }

  #failed(error) {
    if (this.drawing) cancelAnimationFrame(this.drawing);
    this.drawing = null;
    if (this.received) this.#draw();
    this.answer = "";
    if (error.name === "AbortError") {
      this.told = "Cancelled.";
      this.state.replaceChildren("Cancelled. ", this.#again(0));
      return;
    }
    this.element.classList.add("failed");
    this.told = error.message;
    this.state.replaceChildren(`${error.message} `, this.#again(error.retryAfterS ?? 0));
  }

  /** Asks once more, from the moment on in which the service said that it has room. */
  #again(waitS) {
    const button = make("button", { type: "button", class: "plain", onclick: this.onRetry }, "Try again");
    if (!waitS) return button;
    let left = Math.ceil(waitS);
    button.disabled = true;
    const tick = () => {
      button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
      button.disabled = left > 0;
      if (left <= 0) clearInterval(timer);
      left -= 1;
    };
    const timer = setInterval(tick, 1000);
    tick();
    return button;
  }

  /** Something that is waited for, and since when: no wait looks like the one before it. */
  #wait(words) {
    clearInterval(this.ticking);
    const since = Date.now();
    const tick = () => {
      const seconds = Math.round((Date.now() - since) / 1000);
      this.state.textContent = seconds >= 3 ? `${words} … ${seconds} s` : `${words} …`;
    };
    tick();
    this.ticking = setInterval(tick, 1000);
  }
}
