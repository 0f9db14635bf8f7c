/** The shown picture's people: as crops with one or both nets' skeletons, and as a table. */

import { pose } from "./api.js";
import { byId, element, milliseconds, percent } from "./dom.js";
import { colour, drawCrop, routeName, routeOf } from "./drawing.js";
import { disagreement, same } from "./moves.js";
import { patiently } from "./patience.js";
import { explain, explainWait } from "./sentences.js";

const CROP = { width: 210, height: 280 };

export class People {
  #album;
  #drawnOf = null;
  #both = false;
  #asking = new AbortController();
  edges = [];

  /**
   * @param {import("./album.js").Album} album @param {(person: any) => void} pick lets a person stand out
   * @param {() => void} askToken
   */
  constructor(album, pick, askToken) {
    this.#album = album;
    this.pick = pick;
    this.askToken = askToken;
    byId("compare").addEventListener("click", () => this.#compare());
  }

  /** New crops for a new answer only, so that neither focus nor place is lost meanwhile. */
  draw({ force = false } = {}) {
    const picture = this.#album.shown;
    const result = picture?.result ?? null;
    if (result === this.#drawnOf && !force) return;
    this.#drawnOf = result;
    this.#asking.abort();
    this.pick(null);
    const people = result?.people ?? [];
    const nets = this.#both ? picture?.nets : null;
    byId("compare").disabled = people.length === 0;
    byId("compare").setAttribute("aria-pressed", String(this.#both && people.length > 0));
    byId("compare-note").textContent = nets ? comparison(people, nets) : "";
    byId("nobody").hidden = result === null || people.length > 0;
    byId("crops").replaceChildren(...people.map((person, index) => this.#card(picture, person, index, nets)));
    byId("crops").classList.toggle("both", Boolean(nets));
    byId("table").parentElement.hidden = people.length === 0;
    byId("table").tBodies[0].replaceChildren(...people.map((person, index) => this.#row(result, person, index)));
    if (this.#both && people.length && !nets) this.#askBoth(picture);
  }

  #compare() {
    this.#both = !this.#both;
    this.draw({ force: true });
  }

  /** The same boxes by either net, as the paper's figure 9 has them. */
  async #askBoth(picture) {
    this.#asking = new AbortController();
    const { signal } = this.#asking;
    byId("compare-note").textContent = "Asking both nets …";
    const tell = (problem, seconds) => (byId("compare-note").textContent = explainWait(problem, seconds));
    const boxes = picture.result.people.map((person) => person.bbox);
    try {
      const ask = (estimator) => patiently(() => pose(picture.file, { estimator, boxes, signal }), { signal, onWait: tell });
      const [small, large] = [await ask("small"), await ask("large")];
      picture.nets = { small, large };
      if (!signal.aborted) this.draw({ force: true });
    } catch (problem) {
      if (signal.aborted) return; // another picture is shown, or none by both nets
      this.#both = false;
      byId("compare").setAttribute("aria-pressed", "false");
      byId("compare-note").textContent = explain(problem, picture.name);
      if (problem.status === 401) this.askToken();
    }
  }

  #card(picture, person, index, nets) {
    const views = nets
      ? ["small", "large"].map((net) => [`${net} net`, same(person, nets[net].people), "forced", net])
      : [[`${person.estimator} net`, person, routeOf(person), person.estimator]];
    const figures = views.map(([name, shown, route, net]) => {
      const canvas = element("canvas", { role: "img", "aria-label": `Person ${index + 1}, ${name}` });
      drawCrop(canvas, picture, person, shown, { edges: this.edges, paint: colour(route), ...CROP });
      const chosen = nets && net === person.estimator;
      return element("figure", { class: chosen ? "chosen" : null }, canvas,
        element("figcaption", {}, chosen ? `${name}, chosen` : name));
    });
    const apart = nets ? differs(person, nets) : null;
    const card = element("li", { class: routeOf(person) },
      element("div", { class: "pictures" }, ...figures),
      element("p", {}, element("b", {}, `${index + 1} · ${person.difficulty?.toFixed(3) ?? "–"}`),
        ` ${routeName(routeOf(person))}`, person.moved ? `, moved to the ${person.estimator} net` : ""),
    );
    if (apart !== null) card.append(element("p", { class: "quiet" }, `Joints ${percent(apart)} of the body apart`));
    card.addEventListener("pointerenter", () => this.pick(person));
    card.addEventListener("pointerleave", () => this.pick(null));
    return card;
  }

  #row(result, person, index) {
    const button = element("button", { type: "button" }, String(index + 1));
    button.setAttribute("aria-label", `Person ${index + 1}: show alone in the picture`);
    button.addEventListener("focus", () => this.pick(person));
    button.addEventListener("click", () => this.pick(person));
    button.addEventListener("blur", () => this.pick(null));
    return element("tr", { class: routeOf(person) },
      element("th", { scope: "row" }, button),
      element("td", {}, person.difficulty?.toFixed(3) ?? "–"),
      element("td", {}, routeName(routeOf(person))),
      element("td", {}, person.moved ? `${person.estimator}, moved` : person.estimator),
      element("td", {}, person.score.toFixed(2)),
      element("td", {}, where(person.bbox, result)));
  }
}

/** A place in words: which third, and how tall. */
function where([x, , w, h], { width, height }) {
  const third = Math.min(2, Math.max(0, Math.floor((3 * (x + w / 2)) / width)));
  return `${["left", "middle", "right"][third]}, ${percent(Math.min(1, h / height))} tall`;
}

function differs(person, nets) {
  const [small, large] = [same(person, nets.small.people), same(person, nets.large.people)];
  return small && large ? disagreement(small, large) : null;
}

function comparison(people, nets) {
  const [small, large] = [nets.small.timing.estimate, nets.large.timing.estimate];
  const apart = people.map((person) => differs(person, nets)).filter((value) => value !== null);
  const mean = apart.length ? apart.reduce((sum, value) => sum + value, 0) / apart.length : 0;
  return `For these people the small net took ${milliseconds(small)} ms and the large one ${milliseconds(large)} ms; ` +
    `their joints lie ${percent(mean)} of the body’s size apart on average. Blue is what a net says unasked by the router.`;
}
