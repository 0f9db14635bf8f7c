/** The service's HTTP interface. Addresses are relative to the page, which may lie behind a proxy's path. */

import { token } from "./tokens.js";

/**
 * @typedef {{bbox: number[], bbox_score: number, keypoints: number[][], score: number, difficulty?: number,
 *   route: "easy"|"hard"|"extremely_hard"|null, estimator: "small"|"large"}} Person
 * @typedef {{p: number, k1: number|null, k2: number|null, policy: string, version: number}} Split
 * @typedef {{width: number, height: number, people: Person[], truncated: boolean, split: Split,
 *   timing: Record<string, number>, roundTrip: number}} Result
 */

/** How long a look at the service may take. */
const LOOK_MS = 5000;

/** An answer that is no success, or none at all (status 0). `secret` is the token that was sent. */
export class Problem extends Error {
  constructor(status, code, detail, retryAfter = null) {
    super(detail);
    Object.assign(this, { status, code, detail, retryAfter });
  }
}

/** @returns {Promise<Response>} Throws Problem, or AbortError when `signal` says so. */
async function ask(path, { secret = "", headers = {}, ...options } = {}) {
  const authorised = secret ? { ...headers, Authorization: `Bearer ${secret}` } : headers;
  let answer;
  try {
    answer = await fetch(new URL(path, document.baseURI), { ...options, headers: authorised, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "unreachable", "the service cannot be reached");
  }
  if (answer.ok) return answer;
  throw Object.assign(await problemOf(answer), { secret });
}

async function problemOf(answer) {
  const said = await answer.json().catch(() => ({}));
  const seconds = Number.parseFloat(answer.headers.get("Retry-After") ?? "");
  const detail = said.detail ?? said.reason ?? (answer.statusText || `status ${answer.status}`);
  return new Problem(answer.status, said.code ?? "", detail, Number.isFinite(seconds) ? seconds : null);
}

/**
 * One picture's people.
 * @param {File} file
 * @param {{p?: number|null, estimator?: string, boxes?: number[][], signal?: AbortSignal}} options
 * @returns {Promise<Result>}
 */
export async function pose(file, { p = null, estimator = "auto", boxes, signal } = {}) {
  const body = new FormData();
  body.append("images", file, file.name);
  if (boxes) body.append("boxes", JSON.stringify([boxes]));
  const query = new URLSearchParams(p === null ? { estimator } : { p: String(p), estimator });
  const begun = performance.now();
  const answer = await ask(`pose?${query}`, { method: "POST", body, signal, secret: token("pose") }).catch(async (problem) => {
    if (problem.code === "unreachable" && !(await readable(file))) throw new Problem(0, "unreadable", "the file has changed");
    throw problem;
  });
  const { images, split, timing_ms: timing } = await content(answer);
  const { width, height, people, truncated } = images[0];
  timing.nets = timing.score + timing.estimate; // a router may do the small net's work
  return { width, height, people, truncated, split, timing, roundTrip: performance.now() - begun };
}

/** Whether a file is still what was chosen: it may have been a folder, or have been written anew. */
function readable(file) {
  return file.slice(0, 1).arrayBuffer().then(() => true, () => false);
}

/** An answer's JSON. What breaks off, or is a proxy's page, is no answer of the service. */
function content(answer) {
  return answer.json().catch((error) => {
    throw error.name === "AbortError" ? error : new Problem(0, "unreachable", "the service cannot be reached");
  });
}

/** @returns {Promise<{config: any, etag: string}>} */
export async function readConfig() {
  return configOf(await ask("config"));
}

/** Change the service's own settings unless somebody else has since `etag`. */
export async function changeConfig(changes, etag) {
  const headers = { "Content-Type": "application/merge-patch+json", "If-Match": etag };
  const body = JSON.stringify(changes);
  return configOf(await ask("config", { method: "PATCH", headers, body, secret: token("admin") }));
}

async function configOf(answer) {
  const etag = answer.headers.get("ETag")?.replace(/^W\//, ""); // a proxy that compresses makes it weak
  return { config: await content(answer), etag: etag ?? "*" };
}

export async function readMetrics() {
  return (await ask("metrics", { signal: AbortSignal.timeout(LOOK_MS) })).text();
}

/** Null when the service is ready, or does not say, else why not. */
export async function unready() {
  try {
    await ask("readyz", { signal: AbortSignal.timeout(LOOK_MS) });
    return null;
  } catch (problem) {
    return problem.status === 503 || problem.status === 0 ? problem.detail : null;
  }
}

let known = null;

/** What runs, and how the keypoints are joined; asked once. */
export function readVersion() {
  known ??= ask("version")
    .then((answer) => answer.json())
    .catch((problem) => {
      known = null;
      throw problem;
    });
  return known;
}
