// The key that the service asks for, where it asks for one: kept for this tab, sent with every request.

import { find } from "./dom.js";

const STORED = "tidegate-key";

class Key {
  #text = sessionStorage.getItem(STORED) ?? "";

  /** Headers that say who asks; none without a key. */
  get headers() {
    return this.#text ? { Authorization: `Bearer ${this.#text}` } : {};
  }

  /** Ask the reader for a key, with which the page then starts anew; what was said to them. */
  ask() {
    const dialog = find("#key-dialog");
    const words = this.#text
      ? "This key is not known here, or was revoked. Enter another one."
      : "This service asks for a key. Enter the one that you were given.";
    find("#key-button").hidden = false;
    find("#key-words").textContent = words;
    if (!dialog.open && !this.putOff) dialog.showModal();
    return words;
  }

  /** Listen to the dialog. */
  start() {
    const dialog = find("#key-dialog");
    find("#key-button").addEventListener("click", () => dialog.showModal());
    find("#key-later").addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => (this.putOff = true));
    find("#key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(STORED, find("#key").value.trim());
      location.reload();
    });
  }
}

export const key = new Key();
