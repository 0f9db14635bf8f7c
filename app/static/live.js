/** What the service does at this moment, from its /metrics, while somebody looks. */

import { readMetrics, unready } from "./api.js";
import { byId, element, milliseconds, percent, plural } from "./dom.js";
import { routeName } from "./drawing.js";
import { historyPlot } from "./plots.js";
import { growth, parse, quantile, total } from "./prometheus.js";

const EVERY_MS = 2000;
const WINDOW_S = 10;
const PLACES = 60;
const ROUTES = ["easy", "hard", "extremely_hard"];
const LATENCY = "dynpose_request_duration_seconds";

export class Live {
  #scrapes = [];
  #rates = [];
  #timer = 0;
  #onLook;

  /** @param {(settings: string) => void} onLook hears at every look something that is new when the settings are */
  constructor(onLook) {
    this.#onLook = onLook;
    document.addEventListener("visibilitychange", () => this.#visible());
    this.#visible();
  }

  #visible() {
    clearTimeout(this.#timer);
    if (document.visibilityState === "visible") this.#tick();
  }

  async #tick() {
    try {
      const [text, reason] = await Promise.all([readMetrics(), unready()]);
      const samples = parse(text);
      this.#note(samples);
      this.#draw(reason);
      // What changes p changes the counter too, but for a restart.
      this.#onLook(["dynpose_config_changes_total", "dynpose_split_target"].map((name) => total(samples, name)).join());
    } catch (problem) {
      state("away", problem.status ? `No metrics: ${problem.detail}.` : "The service cannot be reached.");
      if (problem.status) this.#onLook("unknown"); // a proxy may keep them from this page
    }
    clearTimeout(this.#timer);
    if (document.visibilityState === "visible") this.#timer = setTimeout(() => this.#tick(), EVERY_MS);
  }

  #note(samples) {
    const at = performance.now() / 1000;
    const last = this.#scrapes.at(-1);
    if (last) this.#rates.push(growth(last.samples, samples, "dynpose_people_total") / Math.max(0.1, at - last.at));
    this.#rates = this.#rates.slice(-PLACES);
    this.#scrapes.push({ at, samples });
    // One scrape older than the window stays, to count from.
    while (this.#scrapes.length > 2 && at - this.#scrapes[1].at >= WINDOW_S) this.#scrapes.shift();
  }

  #draw(reason) {
    const [first, last] = [this.#scrapes[0], this.#scrapes.at(-1)];
    const seconds = Math.max(0.1, last.at - first.at);
    const rate = (name) => (this.#scrapes.length < 2 ? "–" : oneDecimal(growth(first.samples, last.samples, name) / seconds));
    byId("pictures-rate").textContent = rate("dynpose_images_total");
    byId("people-rate").textContent = rate("dynpose_people_total");
    this.#drawLatency(first.samples, last.samples, seconds);
    drawRatio(last.samples);
    byId("history").querySelector("svg")?.remove();
    byId("history").prepend(historyPlot(this.#rates, PLACES));
    if (reason === null) state("ready", ready(last.samples));
    else state("waiting", `Not ready: ${reason}. Pictures wait until it is.`);
  }

  /** Of the window if it had requests, else of all since the start. */
  #drawLatency(first, last, seconds) {
    const recent = this.#scrapes.length > 1 && growth(first, last, `${LATENCY}_count`) > 0;
    const since = recent ? first : [];
    for (const [id, share] of [["p50", 0.5], ["p95", 0.95]]) {
      const found = quantile(since, last, LATENCY, share);
      byId(id).textContent = found === null ? "–" : milliseconds(1000 * found);
    }
    const busy = plural(total(last, "dynpose_in_flight"), "request", "requests");
    byId("window").textContent = recent
      ? `All clients, last ${Math.round(seconds)} s; ${busy} in work.`
      : "Nothing asked just now; milliseconds are since the start.";
  }
}

function drawRatio(samples) {
  const ratios = ROUTES.map((route) => total(samples, "dynpose_route_ratio", { route }) || 0);
  const bar = byId("ratio");
  const words = ROUTES.map((route, index) => `${percent(ratios[index])} ${routeName(route)}`).join(", ");
  const people = total(samples, "dynpose_large_share_people");
  const any = ratios.some((ratio) => ratio > 0);
  bar.setAttribute("aria-label", any ? words : "No people yet");
  bar.replaceChildren(
    ...ROUTES.map((route, index) => {
      const part = element("span", { class: route });
      part.style.flexGrow = String(ratios[index]);
      return part;
    }),
  );
  const share = people > 0 ? ` Large net since the last change: ${percent(total(samples, "dynpose_large_share"))} of ` +
    `${plural(people, "person", "people")}, asked for ${percent(total(samples, "dynpose_split_target"))}.` : "";
  byId("ratio-words").textContent = any ? `Newest people: ${words}.${share}` : "No people yet.";
}

function ready(samples) {
  const { version, pair, device, runtime } = samples.find(({ name }) => name === "dynpose_build_info")?.labels ?? {};
  return `Ready: ${pair} pair on ${device} (${runtime}), version ${version}.`;
}

function state(kind, text) {
  const line = byId("state");
  line.className = kind;
  if (line.textContent !== text) line.textContent = text; // a live region repeats what is set again
}

const oneDecimal = (value) => (value >= 100 ? Math.round(value).toString() : value.toFixed(1));
