/** The pictures of this page, and asking the service about them. Knows nothing of the document. */

import { pose } from "./api.js";
import { byDifficulty, moves } from "./moves.js";
import { patiently } from "./patience.js";

const PARALLEL = 2;
const MAX_SIDE = 2048;
const THUMBNAIL_SIDE = 128;
/** Pictures that stay decoded, up to 17 MB each; others are decoded again when they are shown. */
const KEPT = 6;

/**
 * @typedef {{id: number, name: string, file: File, bitmap: ImageBitmap|null, thumbnail: ImageBitmap|null, state: "waiting"|"asking"|"done"|"failed",
 *   result: import("./api.js").Result|null, before: import("./api.js").Result|null, stale: boolean,
 *   problem: any, tries: {p: number, ms: number}[], nets: any, controller: AbortController|null}} Picture
 */

let ids = 0;

/** Fires `change` whenever something of it is new, and `wait` and `failure` with a picture and its problem. */
export class Album extends EventTarget {
  /** @type {Picture[]} */
  pictures = [];
  /** @type {Picture|null} */
  shown = null;
  /** The p that pictures are asked with; null: the service's own. @type {number|null} */
  p = null;
  /** Whose bitmaps are there, the newest first. @type {Picture[]} */
  #decoded = [];
  #turn = 0;

  /** @param {File[]} files */
  add(files) {
    const added = files.map((file) => ({
      id: (ids += 1), name: file.name || "picture", file, bitmap: null, thumbnail: null, state: "waiting", result: null, before: null,
      stale: false, problem: null, tries: [], nets: null, controller: null,
    }));
    this.pictures.push(...added);
    this.show(added[0]);
  }

  async show(picture) {
    const turn = (this.#turn += 1);
    if (picture.thumbnail) await this.#decode(picture);
    if (turn !== this.#turn) return; // another was chosen meanwhile
    this.shown = picture;
    if (picture.stale) this.#again(picture);
    this.#changed();
    this.#pump();
  }

  clear() {
    for (const picture of this.pictures) {
      picture.controller?.abort();
      picture.controller = null; // nothing of it is to be told any more
      picture.bitmap?.close();
      picture.thumbnail?.close();
    }
    this.#turn += 1;
    this.#decoded = [];
    this.pictures = [];
    this.shown = null;
    this.#changed();
  }

  /** Ask with another p: the shown picture at once, the others when they are shown. */
  turn(p) {
    this.p = p;
    for (const picture of this.pictures) picture.stale = picture.state !== "waiting";
    if (this.shown) this.show(this.shown);
  }

  retry() {
    for (const picture of this.pictures.filter((one) => one.state === "failed")) this.#again(picture);
    this.#changed();
    this.#pump();
  }

  #again(picture) {
    picture.controller?.abort();
    Object.assign(picture, { state: "waiting", stale: false, problem: null });
  }

  #pump() {
    const busy = this.pictures.filter((picture) => picture.state === "asking").length;
    const waiting = this.pictures.filter((picture) => picture.state === "waiting");
    waiting.sort((a, b) => Number(b === this.shown) - Number(a === this.shown));
    for (const picture of waiting.slice(0, Math.max(0, PARALLEL - busy))) this.#ask(picture);
  }

  async #ask(picture) {
    const controller = new AbortController();
    const { signal } = controller;
    Object.assign(picture, { state: "asking", controller });
    this.#changed();
    const onWait = (problem, seconds) => this.#tell("wait", picture, problem, seconds);
    try {
      if (!picture.thumbnail) {
        await this.#decode(picture);
        if (picture.controller === controller) this.#changed(); // it can be seen while its people are found
      }
      const result = await patiently(() => pose(picture.file, { p: this.p, signal }), { signal, onWait });
      if (picture.controller !== controller) return;
      this.#answered(picture, result);
    } catch (problem) {
      if (picture.controller !== controller || problem.name === "AbortError") return;
      Object.assign(picture, { state: "failed", problem });
      this.#tell("failure", picture, problem);
    }
    this.#changed();
    this.#pump();
  }

  async #decode(picture) {
    if (!picture.bitmap) {
      const bitmap = await decoded(picture.file);
      if (picture.bitmap || !this.pictures.includes(picture)) return bitmap?.close();
      picture.bitmap = bitmap;
      picture.thumbnail ??= bitmap && (await shrunk(bitmap, THUMBNAIL_SIDE / Math.min(bitmap.width, bitmap.height)));
    }
    this.#decoded = [picture, ...this.#decoded.filter((one) => one !== picture)];
    for (const old of this.#decoded.slice(KEPT).filter((one) => one !== this.shown)) {
      old.bitmap?.close();
      old.bitmap = null;
    }
    this.#decoded = this.#decoded.filter((one) => one.bitmap);
  }

  #answered(picture, result) {
    const before = picture.result;
    result.people = byDifficulty(result.people);
    const moved = before ? moves(before.people, result.people) : { toSmall: [], toLarge: [] };
    for (const person of [...moved.toSmall, ...moved.toLarge]) person.moved = true;
    const tries = [...picture.tries, { p: result.split.p, ms: result.timing.nets }].slice(-60);
    Object.assign(picture, { state: "done", before, result, tries, problem: null });
    this.#tell("answer", picture);
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }

  #tell(type, picture, problem = null, seconds = 0) {
    this.dispatchEvent(new CustomEvent(type, { detail: { picture, problem, seconds } }));
  }
}

/** The picture as the browser shows it, upright and not larger than a screen; null where it does not know the format. */
async function decoded(file) {
  try {
    const bitmap = await createImageBitmap(file);
    const factor = MAX_SIDE / Math.max(bitmap.width, bitmap.height);
    if (factor >= 1) return bitmap;
    const small = await shrunk(bitmap, factor);
    bitmap.close();
    return small;
  } catch {
    return null;
  }
}

function shrunk(bitmap, factor) {
  const side = (length) => Math.max(1, Math.round(length * Math.min(1, factor)));
  const size = { resizeWidth: side(bitmap.width), resizeHeight: side(bitmap.height) };
  return createImageBitmap(bitmap, { ...size, resizeQuality: "high" });
}
