/** p for the shown picture: who moved between the nets, and what it cost. */

import { byId, drawn, element, milliseconds, plot, plural } from "./dom.js";
import { ROUTES, routeName, routeOf } from "./drawing.js";
import { moves } from "./moves.js";
import { stripPlot, triesPlot } from "./plots.js";

const DEBOUNCE_MS = 250;

const COSTS = [
  ["Router and pose nets", (result) => result.timing.nets],
  ["Whole answer", (result) => result.timing.total],
  ["Round trip", (result) => result.roundTrip],
];

export class Split {
  #album;
  #own = null;
  #timer = 0;

  /** @param {import("./album.js").Album} album */
  constructor(album) {
    this.#album = album;
    byId("p").addEventListener("input", () => this.#turned());
    byId("follow").addEventListener("change", () => this.#follow(byId("follow").checked));
  }

  /** The service's own p, which pictures are asked with until somebody moves the slider. */
  set own(p) {
    const changed = this.#own !== null && this.#own !== p;
    this.#own = p;
    if (!byId("follow").checked) return;
    this.#show(p);
    if (changed) this.#album.turn(null);
  }

  #turned() {
    byId("follow").checked = false;
    const p = byId("p").valueAsNumber;
    this.#show(p);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#album.turn(p), DEBOUNCE_MS);
  }

  #follow(on) {
    clearTimeout(this.#timer);
    if (on && this.#own !== null) this.#show(this.#own);
    this.#album.turn(on ? null : byId("p").valueAsNumber);
  }

  #show(p) {
    byId("p").value = String(p);
    byId("p-value").textContent = p.toFixed(2);
  }

  draw() {
    const picture = this.#album.shown;
    const result = picture?.result ?? null;
    drawRoutes(result?.people ?? []);
    drawMoves(picture?.before ?? null, result);
    drawCosts(picture?.before ?? null, result);
    byId("strip").hidden = !result?.people.length;
    if (result?.people.length) plot(byId("strip"), stripPlot(result.people, result.split));
    byId("tries").hidden = (picture?.tries.length ?? 0) < 2;
    if (picture && picture.tries.length >= 2) plot(byId("tries"), triesPlot(picture.tries));
  }
}

/** The legend, with how many people have each colour. */
function drawRoutes(people) {
  const net = { easy: "small net", hard: "large net", extremely_hard: "small net", forced: "net of your choice" };
  const lines = ROUTES.filter((route) => route !== "forced").map((route) => {
    const count = people.filter((person) => routeOf(person) === route).length;
    const mark = drawn("svg", { viewBox: "0 0 10 10", class: "swatch", "aria-hidden": "true" });
    mark.append(drawn("rect", { width: 10, height: 10, rx: 2, class: route }));
    const words = element("span", {}, routeName(route), element("small", {}, ` → ${net[route]}`));
    return element("li", {}, mark, words, element("b", {}, String(count)));
  });
  byId("routes").replaceChildren(...lines);
}

function drawMoves(before, result) {
  byId("moved").textContent = !result ? "" : before ? movesSentence(before, result) : firstSentence(result);
}

function firstSentence({ people, timing }) {
  const large = people.filter((person) => person.estimator === "large").length;
  if (people.length === 0) return "Nobody was found.";
  return `${plural(people.length, "person", "people")}, ${large} of them by the large net, in ${milliseconds(timing.total)} ms.`;
}

function movesSentence(before, result) {
  const { toSmall, toLarge } = moves(before.people, result.people);
  const step = `From p = ${before.split.p.toFixed(2)} to ${result.split.p.toFixed(2)}`;
  const parts = [
    toSmall.length && `${plural(toSmall.length, "person", "people")} moved from the large to the small net`,
    toLarge.length && `${plural(toLarge.length, "person", "people")} moved from the small to the large net`,
  ].filter(Boolean);
  const change = result.timing.nets - before.timing.nets;
  const cost = `router and pose nets took ${milliseconds(Math.abs(change))} ms ${change < 0 ? "less" : "more"}`;
  return `${step}: ${parts.length ? parts.join(", ") : "nobody changed nets"}; ${cost}.`;
}

function drawCosts(before, result) {
  byId("cost").hidden = result === null;
  if (!result) return;
  byId("cost-before").textContent = before ? `p = ${before.split.p.toFixed(2)}` : "before";
  byId("cost-now").textContent = `p = ${result.split.p.toFixed(2)}`;
  const rows = COSTS.map(([name, of]) => {
    const change = before ? of(result) - of(before) : null;
    const sign = change !== null && change < 0 ? "−" : "+";
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, name),
      element("td", {}, before ? milliseconds(of(before)) : "–"),
      element("td", {}, milliseconds(of(result))),
      element("td", {}, change === null ? "–" : sign + milliseconds(Math.abs(change))),
    );
  });
  byId("cost").tBodies[0].replaceChildren(...rows);
}
