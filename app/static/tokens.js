/** Bearer tokens of this tab: gone when it is closed, never in a cookie or an address. */

const memory = new Map();

/** @param {"pose"|"admin"} name */
export function token(name) {
  return memory.get(name) ?? stored(() => sessionStorage.getItem(`dynpose.${name}`)) ?? "";
}

/** @param {"pose"|"admin"} name @param {string} value */
export function keepToken(name, value) {
  memory.set(name, value);
  stored(() => sessionStorage.setItem(`dynpose.${name}`, value));
}

/** @param {"pose"|"admin"} name */
export function forgetToken(name) {
  memory.delete(name);
  stored(() => sessionStorage.removeItem(`dynpose.${name}`));
}

/** A header can carry these characters only; anything else would look like a broken network. */
export const sendable = (value) => /^[\x21-\x7e]+$/.test(value);

/** Storage throws where the browser has been told to keep nothing; the tab's memory does then. */
function stored(work) {
  try {
    return work();
  } catch {
    return null;
  }
}
