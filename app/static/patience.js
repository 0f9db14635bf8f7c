/** Waiting for a service that says when to come again, or that is away for a moment. */

const LONGEST_WAIT_S = 30;

/**
 * Do `work` again while it fails with 429 or 503, as late as Retry-After asks, or finds nobody.
 * @template T
 * @param {() => Promise<T>} work
 * @param {{signal?: AbortSignal, onWait: (problem: any, seconds: number) => void, limitS?: number}} options
 * @returns {Promise<T>}
 */
export async function patiently(work, { signal, onWait, limitS = 180 }) {
  const end = performance.now() + 1000 * limitS;
  for (let tries = 1; ; tries += 1) {
    try {
      return await work();
    } catch (problem) {
      const away = problem.code === "unreachable" || problem.status === 502;
      const busy = away || problem.status === 429 || problem.status === 503;
      // The picture travels every time, so a service that takes long to start is asked more seldom than it says.
      const patience = problem.status === 429 ? 1 : Math.min(2 * tries, 8);
      const seconds = Math.min(LONGEST_WAIT_S, Math.ceil(Math.max(problem.retryAfter ?? 0, patience)));
      if (!busy || performance.now() + 1000 * seconds > end) throw problem;
      signal?.throwIfAborted();
      onWait(problem, seconds);
      await pause(seconds, signal);
    }
  }
}

/** @param {number} seconds @param {AbortSignal} [signal] */
function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("not wanted any more", "AbortError"));
    });
  });
}
