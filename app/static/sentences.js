/** Problems in words that help the person at the screen. */

/** @param {string} text */
function sentence(text) {
  const trimmed = text.trim().replace(/[.;]+$/, "");
  return `${trimmed.charAt(0).toUpperCase()}${trimmed.slice(1)}.`;
}

const SAID = {
  unauthorized: () => "This service asks for a token before it takes pictures.",
  too_large: (subject, detail) => `${subject} is too large: ${detail}`,
  unsupported_media_type: (subject, detail) => `${subject} cannot be read: ${detail}`,
  invalid_image: (subject, detail) => `${subject} cannot be read: ${detail}`,
  timeout: (subject) => `${subject} took too long to arrive; the connection may be slow`,
  overloaded: () => "The service is busy and had no room even after some waiting; try again later",
  not_ready: (_, detail) => `The service is not ready after a long wait (${reason(detail)})`,
  draining: () => "The service is shutting down and takes no more pictures",
  deadline: (subject) => `${subject} was not answered in time; the service is busy`,
  internal: (subject) => `The service failed at ${subject}; its log has the reason`,
  unreadable: (subject) => `${subject} cannot be read any more: choose it again`,
  unreachable: () => "The service cannot be reached: it may be down, or your connection is",
};

const reason = (detail) => detail.replace(/^the service is not ready: /, "");

/**
 * @param {{status: number, code: string, detail: string}} problem
 * @param {string} subject what it is about, such as a file's name
 */
export function explain(problem, subject) {
  const said = SAID[problem.code];
  return sentence(said ? said(subject, problem.detail) : `${subject}: ${problem.detail}`);
}

/** What is said while the page waits for a service that is busy or starting. */
export function explainWait(problem, seconds) {
  const again = `Asking again in ${seconds} s.`;
  if (problem.code === "overloaded") return `The service is busy. ${again}`;
  if (problem.code === "unreachable" || problem.status === 502) return `The service cannot be reached. ${again}`;
  if (problem.code === "draining") return `The service is shutting down or being replaced. ${again}`;
  return `The service is not ready yet (${reason(problem.detail)}). ${again}`;
}
