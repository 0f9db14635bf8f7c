/** The shown picture with its people, and the row of all pictures. */

import { byId, element, plural } from "./dom.js";
import { colour, drawBackground, drawPerson, drawTag, routeOf, size } from "./drawing.js";

const THUMBNAIL = 64;
const SMALL_PICTURES_GROW = 2;

export class Stage {
  #album;
  #edges = [];
  #picked = null;
  /** Of each picture its place in the row, and what it showed when it was drawn. */
  #places = new WeakMap();

  /** @param {import("./album.js").Album} album */
  constructor(album) {
    this.#album = album;
    new ResizeObserver(() => this.draw()).observe(byId("photo"));
  }

  set edges(edges) {
    this.#edges = edges;
    this.draw();
  }

  /** Let one person stand out; null for none. */
  set picked(person) {
    this.#picked = person;
    this.draw();
  }

  draw() {
    const picture = this.#album.shown;
    const canvas = byId("picture");
    const shape = picture && (picture.result ?? picture.bitmap);
    byId("main").classList.toggle("empty", picture === null);
    byId("invitation").hidden = picture !== null;
    byId("clear").hidden = picture === null;
    byId("busy").hidden = picture?.state !== "asking" && picture?.state !== "waiting";
    canvas.hidden = !shape;
    note(picture, shape);
    if (shape) this.#paint(canvas, picture, shape);
    this.#drawAlbum();
  }

  #paint(canvas, picture, shape) {
    const room = [byId("stage").clientWidth, Math.max(320, 0.78 * window.innerHeight)];
    const scale = Math.min(room[0] / shape.width, room[1] / shape.height, SMALL_PICTURES_GROW);
    const density = size(canvas, Math.round(shape.width * scale), Math.round(shape.height * scale));
    const view = { left: 0, top: 0, scale: canvas.width / shape.width };
    const pen = canvas.getContext("2d");
    drawBackground(pen, picture.bitmap, shape, view);
    const people = picture.result?.people ?? [];
    canvas.setAttribute("aria-label", describe(picture));
    const widest = Math.max(canvas.width, canvas.height) / 260;
    const alpha = (person) => (this.#picked && this.#picked !== person ? 0.25 : 1);
    for (const person of people) {
      pen.globalAlpha = alpha(person);
      drawPerson(pen, person, { view, edges: this.#edges, paint: colour(routeOf(person)), widest });
    }
    const taken = [];
    people.forEach((person, index) => {
      pen.globalAlpha = alpha(person);
      const difficulty = person.difficulty?.toFixed(3) ?? person.estimator;
      const text = `${index + 1} · ${difficulty}${person.moved ? ` → ${person.estimator}` : ""}`;
      const [x, y] = person.bbox;
      const look = { paint: colour(routeOf(person)), fontSize: 13 * density, taken };
      drawTag(pen, text, x * view.scale, y * view.scale, look);
    });
    pen.globalAlpha = 1;
  }

  /** Places stay what they are while answers come, so that a click or the focus on one is not lost. */
  #drawAlbum() {
    const { pictures, shown } = this.#album;
    const row = byId("album");
    row.hidden = pictures.length < 2;
    const items = row.hidden ? [] : pictures.map((picture) => this.#place(picture, picture === shown));
    const same = items.length === row.children.length && items.every((item, index) => item === row.children[index]);
    if (!same) row.replaceChildren(...items);
  }

  #place(picture, current) {
    const { state, thumbnail } = picture;
    const count = state === "done" ? picture.result.people.length : { failed: "!" }[state] ?? "…";
    const look = [state, current, thumbnail !== null, count].join();
    if (!this.#places.has(picture)) this.#places.set(picture, this.#newPlace(picture));
    const place = this.#places.get(picture);
    if (place.look !== look) {
      place.look = look;
      place.button.className = state;
      if (current) place.button.setAttribute("aria-current", "true");
      else place.button.removeAttribute("aria-current");
      place.button.setAttribute("aria-label", describe(picture));
      place.button.querySelector("span").textContent = String(count);
      paintThumbnail(place.button.querySelector("canvas"), thumbnail);
    }
    return place.item;
  }

  #newPlace(picture) {
    const button = element("button", { type: "button" }, element("canvas"), element("span"));
    button.addEventListener("click", () => this.#album.show(picture));
    return { item: element("li", {}, button), button, look: "" };
  }
}

function paintThumbnail(canvas, thumbnail) {
  size(canvas, THUMBNAIL, THUMBNAIL);
  const scale = thumbnail ? canvas.width / Math.min(thumbnail.width, thumbnail.height) : 1;
  drawBackground(canvas.getContext("2d"), thumbnail, thumbnail ?? { width: 1 }, { left: 0, top: 0, scale });
}

/** What a picture shows, in words. */
function describe({ name, state, result }) {
  if (state === "failed") return `${name}: could not be answered`;
  if (!result) return `${name}: being looked at`;
  const count = result.people.length;
  return `${name} with ${plural(count, "person", "people")}${count ? ", listed in the table below" : ""}`;
}

function note(picture, shape) {
  const line = byId("overlay-note");
  line.textContent = !picture
    ? ""
    : picture.state === "failed"
      ? `There is no answer for ${picture.name}; the message above says why.`
      : shape && !picture.bitmap
        ? `This browser cannot show ${picture.name}, so its people stand on an empty picture.`
        : picture.result?.truncated
          ? "There are more people than the service looks at in one picture; these are the best-scored."
          : "";
  line.hidden = line.textContent === "";
}
