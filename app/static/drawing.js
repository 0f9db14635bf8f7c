/** People on canvases, as `?render=overlay` draws them. */

const MIN_JOINT_SCORE = 0.2;

export const ROUTES = ["easy", "hard", "extremely_hard", "forced"];

/** @param {{route: string|null}} person */
export const routeOf = (person) => person.route ?? "forced";

/** @param {string} route */
export const routeName = (route) => route.replace("_", " ");

/** A colour of page.css, so that page and canvas have the same. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name.replace("_", "-")}`).trim();
}

/**
 * Where a part of a picture lies on a canvas.
 * @typedef {{left: number, top: number, scale: number}} View left, top: picture's pixels; scale: canvas' per picture's
 */

/** Give a canvas a size in CSS pixels; returns how many of its own it has per each. */
export function size(canvas, width, height) {
  const density = sharpen(canvas, width, height);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  return density;
}

/** Give a canvas the pixels for such a size, and leave its place to page.css. */
function sharpen(canvas, width, height) {
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * density));
  canvas.height = Math.max(1, Math.round(height * density));
  return density;
}

/** The picture itself, or an empty one where the browser cannot show its format. */
export function drawBackground(pen, bitmap, { width }, { left, top, scale }) {
  pen.fillStyle = "#3a3d40";
  pen.fillRect(0, 0, pen.canvas.width, pen.canvas.height);
  if (!bitmap) return;
  const shrunk = bitmap.width / width;
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, -left * scale, -top * scale, (bitmap.width / shrunk) * scale, (bitmap.height / shrunk) * scale);
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {{bbox: number[], keypoints: number[][]}} person
 * @param {{view: View, edges: number[][], paint: string, widest: number, box?: boolean}} options
 */
export function drawPerson(pen, person, { view, edges, paint, widest, box = true }) {
  const [x, y, w, h] = person.bbox;
  const width = Math.max(1.5, Math.min(widest, (h * view.scale) / 60));
  const at = ([kx, ky]) => [(kx - view.left) * view.scale, (ky - view.top) * view.scale];
  pen.strokeStyle = pen.fillStyle = paint;
  pen.lineWidth = Math.max(1, width / 2);
  if (box) pen.strokeRect(...at([x, y]), w * view.scale, h * view.scale);
  pen.lineCap = "round";
  const seen = person.keypoints.map((joint) => joint[2] >= MIN_JOINT_SCORE);
  // A dark edge shows on any background.
  for (const [thickness, ink] of [[2 * width, colour("ink")], [width, paint]]) {
    pen.strokeStyle = pen.fillStyle = ink;
    pen.lineWidth = thickness;
    pen.beginPath();
    for (const [a, b] of edges) {
      if (!seen[a] || !seen[b]) continue;
      pen.moveTo(...at(person.keypoints[a]));
      pen.lineTo(...at(person.keypoints[b]));
    }
    pen.stroke();
    for (const joint of person.keypoints.filter((_, index) => seen[index])) {
      pen.beginPath();
      pen.arc(...at(joint), width + thickness / 4, 0, 2 * Math.PI);
      pen.fill();
    }
  }
}

/**
 * A filled tag with dark text, its lower left corner at x, y where there is room for it.
 * @param {number[][]} taken left, top, right, bottom of tags already there, above which it goes; it joins them
 */
export function drawTag(pen, text, x, y, { paint, fontSize, taken }) {
  pen.font = `600 ${fontSize}px system-ui, sans-serif`;
  const [width, height] = [pen.measureText(text).width + 0.7 * fontSize, 1.4 * fontSize];
  const left = Math.max(0, Math.min(x, pen.canvas.width - width));
  const free = (top) => taken.every(([l, t, r, b]) => left >= r || left + width <= l || top >= b || top + height <= t);
  const lowest = Math.max(0, Math.min(y - height, pen.canvas.height - height));
  let top = lowest;
  while (!free(top) && top > 0) top = Math.max(0, top - height / 2);
  if (!free(top)) top = lowest;
  taken.push([left, top, left + width, top + height]);
  pen.fillStyle = paint;
  pen.fillRect(left, top, width, height);
  pen.fillStyle = colour("ink");
  pen.textBaseline = "middle";
  pen.fillText(text, left + 0.35 * fontSize, top + height / 2 + 0.05 * fontSize);
}

/**
 * A person cut out of the picture, with some surroundings.
 * @param {HTMLCanvasElement} canvas
 * @param {any} picture
 * @param {{bbox: number[]}} person whose box is cut out
 * @param {{keypoints: number[][], bbox: number[]}|null} drawnPerson whose joints are drawn
 */
export function drawCrop(canvas, picture, person, drawnPerson, { edges, paint, width, height }) {
  const density = sharpen(canvas, width, height);
  const [x, y, w, h] = person.bbox;
  const scale = Math.min(canvas.width / w, canvas.height / h) / 1.15;
  const start = (middle, shown, whole) =>
    shown >= whole ? (whole - shown) / 2 : Math.max(0, Math.min(middle - shown / 2, whole - shown));
  const view = {
    left: start(x + w / 2, canvas.width / scale, picture.result.width),
    top: start(y + h / 2, canvas.height / scale, picture.result.height),
    scale,
  };
  const pen = canvas.getContext("2d");
  drawBackground(pen, picture.bitmap, picture.result, view);
  if (drawnPerson) drawPerson(pen, drawnPerson, { view, edges, paint, widest: 3 * density, box: false });
}
