/** The live region: one line per matter, replaced when the matter moves on. */

import { byId, element } from "./dom.js";

const lines = new Map();

/**
 * @param {string} key the matter
 * @param {string} text
 * @param {{kind?: "error"|"wait", action?: {label: string, run: () => void}}} options
 */
export function say(key, text, { kind = "error", action } = {}) {
  if (lines.get(key)?.firstChild.textContent === text) return; // a live region repeats what is set again
  unsay(key);
  const line = element("li", { class: kind }, element("span", {}, text));
  if (action) line.append(button(action.label, action.run));
  const close = button("×", () => unsay(key));
  close.setAttribute("aria-label", "Dismiss this message");
  line.append(close);
  lines.set(key, line);
  byId("messages").append(line);
}

/** @param {string} key */
export function unsay(key) {
  lines.get(key)?.remove();
  lines.delete(key);
}

function button(label, run) {
  const made = element("button", { type: "button" }, label);
  made.addEventListener("click", run);
  return made;
}
