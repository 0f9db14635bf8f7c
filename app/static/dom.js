/** Small helpers around the document. */

const SVG = "http://www.w3.org/2000/svg";

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/**
 * An element with attributes (false and null ones are left out) and children.
 * @param {string} tag
 * @param {Record<string, any>} attributes
 * @param {...(Node|string)} children
 * @returns {any}
 */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same in SVG. @returns {any} */
export function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/** Put one figure's SVG in the place of its last. @param {HTMLElement} figure @param {SVGElement} svg */
export function plot(figure, svg) {
  figure.querySelector("svg")?.remove();
  figure.prepend(svg);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Text that counts: `plural(1, "person", "people")` is "1 person". */
export const plural = (count, one, many) => `${count} ${count === 1 ? one : many}`;

/** Milliseconds as people read them: 3 figures at most. */
export const milliseconds = (value) => (value < 9.95 ? value.toFixed(1) : Math.round(value).toLocaleString("en"));

export const percent = (share) => `${Math.round(100 * share)} %`;
