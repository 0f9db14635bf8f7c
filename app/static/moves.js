/** Who is who between two answers about one picture, and who changed nets. */

/** @param {number[]} a x, y, w, h @param {number[]} b @returns {number} intersection over union */
export function overlap([ax, ay, aw, ah], [bx, by, bw, bh]) {
  const width = Math.min(ax + aw, bx + bw) - Math.max(ax, bx);
  const height = Math.min(ay + ah, by + bh) - Math.max(ay, by);
  if (width <= 0 || height <= 0) return 0;
  return (width * height) / (aw * ah + bw * bh - width * height);
}

/**
 * The one of `people` in the same box, or null.
 * @template {{bbox: number[]}} T
 * @param {{bbox: number[]}} person @param {T[]} people @returns {T|null}
 */
export function same(person, people) {
  let [best, most] = [null, 0.5];
  for (const other of people) {
    const shared = overlap(person.bbox, other.bbox);
    if (shared > most) [best, most] = [other, shared];
  }
  return best;
}

/**
 * The people of `now` whose net is another than in `before`.
 * @param {any[]} before @param {any[]} now
 */
export function moves(before, now) {
  const moved = now.filter((person) => {
    const then = same(person, before);
    return then !== null && then.estimator !== person.estimator;
  });
  return {
    toSmall: moved.filter((person) => person.estimator === "small"),
    toLarge: moved.filter((person) => person.estimator === "large"),
  };
}

/** @param {any[]} people by difficulty, the easy first: an order that p does not change */
export function byDifficulty(people) {
  return [...people].sort((a, b) => (a.difficulty ?? 0) - (b.difficulty ?? 0));
}

/**
 * How far two nets put the joints of one person apart: the mean, as a share of the size of the person's box.
 * @param {any} one @param {any} other
 */
export function disagreement(one, other) {
  const sure = one.keypoints
    .map((joint, index) => [joint, other.keypoints[index]])
    .filter(([a, b]) => a[2] >= 0.2 && b[2] >= 0.2);
  if (sure.length === 0) return null;
  const total = sure.reduce((sum, [a, b]) => sum + Math.hypot(a[0] - b[0], a[1] - b[1]), 0);
  return total / sure.length / Math.sqrt(one.bbox[2] * one.bbox[3]);
}
