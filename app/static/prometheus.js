/** Prometheus' text format, and what two scrapes say together. */

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /(\w+)="((?:\\.|[^"\\])*)"/g;
const ESCAPED = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

/** @typedef {{name: string, labels: Record<string, string>, value: number}} Sample */

/** @param {string} text @returns {Sample[]} */
export function parse(text) {
  return text
    .split("\n")
    .filter((line) => line !== "" && !line.startsWith("#"))
    .map((line) => LINE.exec(line))
    .filter((found) => found !== null)
    .map(([, name, labels, value]) => ({ name, labels: labelsOf(labels ?? ""), value: number(value) }));
}

function labelsOf(text) {
  const pairs = [...text.matchAll(LABEL)].map(([, name, value]) => [
    name,
    value.replace(/\\[n"\\]/g, (mark) => ESCAPED[mark]),
  ]);
  return Object.fromEntries(pairs);
}

const number = (text) => ({ "+Inf": Infinity, "-Inf": -Infinity })[text] ?? Number(text);

/**
 * The sum of the samples of a name, NaN when there are none.
 * @param {Sample[]} samples @param {string} name @param {Record<string, string>} labels those that must be so
 */
export function total(samples, name, labels = {}) {
  const wanted = Object.entries(labels);
  const found = samples.filter(
    (sample) => sample.name === name && wanted.every(([key, value]) => sample.labels[key] === value),
  );
  return found.length === 0 ? NaN : found.reduce((sum, sample) => sum + sample.value, 0);
}

/** What a counter has grown by; a service that started anew began at 0. */
export function growth(before, now, name, labels = {}) {
  const [then, value] = [total(before, name, labels) || 0, total(now, name, labels) || 0];
  return value >= then ? value - then : value;
}

/**
 * A quantile of what a histogram has observed between two scrapes, linear within a bucket; null for nothing observed.
 * @param {Sample[]} before @param {Sample[]} now @param {string} name @param {number} share 0 to 1
 */
export function quantile(before, now, name, share) {
  const bucket = `${name}_bucket`;
  const edges = now
    .filter((sample) => sample.name === bucket)
    .map((sample) => sample.labels.le)
    .map((le) => ({ le: number(le), count: growth(before, now, bucket, { le }) }))
    .sort((a, b) => a.le - b.le);
  const all = edges.at(-1)?.count ?? 0;
  if (all <= 0) return null;
  const rank = share * all;
  const index = edges.findIndex((edge) => edge.count >= rank);
  const lower = index > 0 ? edges[index - 1] : { le: 0, count: 0 };
  const { le, count } = edges[index];
  if (!Number.isFinite(le)) return lower.le;
  return lower.le + ((le - lower.le) * (rank - lower.count)) / Math.max(1e-9, count - lower.count);
}
