// What the service is doing, in one word at the top, and whole when opened.

import * as api from "./api.js";
import { count, duration, find, make, size } from "./dom.js";

const WATCHES_S = 2; // while somebody looks, or something is amiss
const RESTS_S = 10;

export class StatusPanel {
  constructor() {
    this.button = find("#status-button");
    this.panel = find("#status");
    this.button.addEventListener("click", () => this.#toggle());
  }

  /** Look now, and again and again while the page is seen. */
  start() {
    document.addEventListener("visibilitychange", () => this.#look());
    this.#look();
  }

  /** Look again at once: something may have changed. */
  look() {
    this.#look();
  }

  #toggle() {
    this.panel.hidden = !this.panel.hidden;
    this.button.setAttribute("aria-expanded", String(!this.panel.hidden));
    this.#look();
  }

  async #look() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    try {
      const status = await api.status();
      this.#show(...inWords(status));
      if (!this.panel.hidden) this.panel.replaceChildren(...lines(status));
    } catch (error) {
      this.#show("down", error.code === "invalid_api_key" ? "Asks for a key" : "Not reachable");
      this.panel.replaceChildren(make("p", {}, error.message));
    }
    clearTimeout(this.timer);
    const rests = this.panel.hidden && this.button.dataset.state === "ok";
    this.timer = setTimeout(() => this.#look(), (rests ? RESTS_S : WATCHES_S) * 1000);
  }

  #show(state, words) {
    this.button.dataset.state = state;
    const shown = find("#state-words");
    if (shown.textContent !== words) shown.textContent = words;
  }
}

function inWords({ dependencies, gate, engine }) {
  const { engine: model, store } = dependencies;
  if (store.status === "down") return ["down", "Documents not readable"];
  if (engine.asleep) return ["degraded", "Asleep; a question wakes it"];
  if (model.status === "down") return ["degraded", "No model: passages only"];
  if (gate.queued) return ["busy", `Busy, ${gate.queued} waiting`];
  if (Object.values(dependencies).some(({ status }) => status !== "ok")) return ["degraded", "Partly ready"];
  return ["ok", "Ready"];
}

function lines({ dependencies, gate, engine, documents, memory, uptime_s: uptimeS }) {
  const parts = Object.entries(dependencies).map(([name, { status, detail }]) =>
    fact(name, detail ? `${status}: ${detail}` : status),
  );
  return [
    make("dl", {}, ...parts.flat(), ...fact("model", engine.model ?? "none"), ...waitsFor(gate), ...(uptimeS ? fact("running for", duration(uptimeS)) : [])),
    meter("Memory of the model's answers", gate.reserved_tokens, gate.kv_cache_tokens, "tokens"),
    meter("Places in the queue", gate.queued, gate.max_queued, "taken"),
    make("p", {}, `${count(documents.total ?? 0, "document")}, ${count(documents.chunks ?? 0, "passage")}${held(documents, memory)}.`),
  ].filter(Boolean);
}

const LIMITS = {
  seats: "a place beside those that it answers",
  time: "others to end, so that all end in time",
  prompts: "prompts that are being read",
  cache: "room in the memory of its answers",
};

/** Which limit keeps the next question from the model; only those see it who run the service. */
const waitsFor = (gate) => (gate.waits_for ? fact("questions wait for", LIMITS[gate.waits_for]) : []);

/** What only those see who run the service. */
const held = (documents, memory) =>
  memory ? `; ${documents.queued + documents.running} on their way. The service holds ${size(memory.rss_bytes)}` : "";

const fact = (name, value) => [make("dt", {}, name), make("dd", {}, value)];

function meter(label, value, most, unit) {
  if (!most) return null;
  const told = `${value.toLocaleString("en")} of ${most.toLocaleString("en")} ${unit}`;
  return make("p", { class: "meter" }, label, make("meter", { min: 0, max: most, value, "aria-label": label }), make("span", {}, told));
}
