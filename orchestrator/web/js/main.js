// The page: its parts put together, and what is shown where there is room for one of them only.

import { Conversation } from "./conversation.js";
import { find } from "./dom.js";
import { key } from "./key.js";
import { Library } from "./library.js";
import { StatusPanel } from "./status.js";
import { Viewer } from "./viewer.js";

const parts = find("main");
const tabs = [...document.querySelectorAll("[data-show]")];

function show(name) {
  parts.dataset.shown = name;
  for (const tab of tabs) {
    if (tab.dataset.show === name) tab.setAttribute("aria-current", "true");
    else tab.removeAttribute("aria-current");
  }
}

for (const tab of tabs) tab.addEventListener("click", () => show(tab.dataset.show));

const viewer = new Viewer();
const library = new Library({ onOpen: (source) => viewer.open(source) });
const status = new StatusPanel();
const conversation = new Conversation({
  scope: () => library.scope(),
  onSource: (source) => viewer.open(source),
  onAnswer: () => status.look(),
});
library.onChange = () => conversation.scopeChanged();

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (viewer.isOpen) viewer.close();
  else conversation.cancel();
});

// A file dropped beside the field would otherwise replace the page by the file.
for (const name of ["dragover", "drop"]) {
  document.addEventListener(name, (event) => event.preventDefault());
}
document.addEventListener("drop", (event) => library.take([...event.dataTransfer.files]));

key.start();
status.start();
library.start();
