/** The page's three small plots, as SVG that page.css colours. */

import { drawn } from "./dom.js";
import { routeOf } from "./drawing.js";

const WIDTH = 340;

/**
 * Difficulties on a line, over the ranges that the thresholds make of it.
 * @param {import("./api.js").Person[]} people @param {import("./api.js").Split} split
 */
export function stripPlot(people, { k1, k2 }) {
  const HEIGHT = 78;
  const known = people.map((person) => person.difficulty ?? 0);
  const finite = [...known, k1, k2].filter((value) => value !== null);
  const margin = Math.max(0.02, 0.12 * (Math.max(...finite) - Math.min(...finite)));
  const [low, high] = [Math.max(0, Math.min(...finite) - margin), Math.min(1, Math.max(...finite) + margin)];
  const x = (value) => 8 + ((WIDTH - 16) * (value - low)) / (high - low);
  const [from, to] = [Math.max(low, k1 ?? low), Math.min(high, k2 ?? high)];
  const band = (a, b, route) =>
    drawn("rect", { x: x(a), y: 20, width: Math.max(0, x(b) - x(a)), height: 34, class: `band ${route}` });
  const svg = canvas(HEIGHT, `Difficulties from ${Math.min(...known).toFixed(3)} to ${Math.max(...known).toFixed(3)}`);
  svg.append(band(low, from, "easy"), band(from, to, "hard"), band(to, high, "extremely_hard"));
  const thresholds = k1 === k2 ? [["k1 = k2", k1]] : [["k1", k1], ["k2", k2]];
  for (const [name, value] of thresholds.filter(([, at]) => at !== null)) {
    svg.append(
      drawn("line", { x1: x(value), x2: x(value), y1: 14, y2: 58, class: "mark" }),
      words(`${name} ${value.toFixed(3)}`, clamp(x(value), 36, WIDTH - 36), 10, "middle"),
    );
  }
  people.forEach((person, index) => {
    const at = x(person.difficulty ?? 0);
    svg.append(
      drawn("circle", { cx: at, cy: 37, r: 8, class: `dot ${routeOf(person)}` }),
      words(String(index + 1), at, 40.5, "middle", "number"),
    );
  });
  svg.append(words(low.toFixed(2), 8, 70), words("difficulty", WIDTH / 2, 70, "middle"), words(high.toFixed(2), WIDTH - 8, 70, "end"));
  return svg;
}

/** Milliseconds against p, the newest try marked. @param {{p: number, ms: number}[]} tries */
export function triesPlot(tries) {
  const HEIGHT = 104;
  const top = round(Math.max(...tries.map((one) => one.ms), 1));
  const x = (p) => 30 + (WIDTH - 42) * p;
  const y = (ms) => 84 - (72 * ms) / top;
  const svg = canvas(HEIGHT, `${tries.length} tries, the newest ${Math.round(tries.at(-1).ms)} ms`);
  for (const share of [0, 0.5, 1]) {
    const ms = share * top;
    svg.append(
      drawn("line", { x1: x(0), x2: x(1), y1: y(ms), y2: y(ms), class: "rule" }),
      words(String(ms), 24, y(ms) + 4, "end"),
      words(share === 0.5 ? "p = 0.5" : String(share), x(share), 99, "middle"),
    );
  }
  tries.forEach(({ p, ms }, index) => {
    const newest = index === tries.length - 1;
    svg.append(drawn("circle", { cx: x(p), cy: y(ms), r: newest ? 5.5 : 3.5, class: newest ? "dot accent" : "dot faint" }));
  });
  return svg;
}

/** A rate over time, the newest at the right. @param {number[]} values @param {number} places how many fit */
export function historyPlot(values, places) {
  const HEIGHT = 56;
  const top = Math.max(...values, 1);
  const step = (WIDTH - 34) / (places - 1);
  const at = (value, index) => [WIDTH - 2 - step * (values.length - 1 - index), 50 - (44 * value) / top];
  const points = values.map(at);
  const svg = canvas(HEIGHT, `Now ${(values.at(-1) ?? 0).toFixed(1)}, at most ${Math.max(...values, 0).toFixed(1)}`);
  svg.append(
    drawn("line", { x1: 32, x2: WIDTH, y1: 50, y2: 50, class: "rule" }),
    words(top < 10 ? top.toFixed(1) : String(Math.round(top)), 26, 12, "end"),
    words("0", 26, 53, "end"),
  );
  if (points.length > 1) {
    const line = points.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join(" ");
    svg.append(
      drawn("polygon", { points: `${points[0][0]},50 ${line} ${WIDTH - 2},50`, class: "area" }),
      drawn("polyline", { points: line, class: "line" }),
    );
  }
  return svg;
}

function canvas(height, label) {
  return drawn("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": label });
}

function words(text, x, y, anchor = "start", kind = "") {
  return drawn("text", { x, y, "text-anchor": anchor, class: kind }, text);
}

/** The next number that is easy to halve, such as 20, 40, 60, 100 or 200. */
function round(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return unit * [1, 2, 4, 6, 8, 10].find((step) => step * unit >= value);
}

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
