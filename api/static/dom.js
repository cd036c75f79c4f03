// Elements out of text, never out of markup: whatever a server says stays text.

export const byId = (id) => document.getElementById(id);

// An element with attributes (properties for on… and booleans) and children, strings among them as text.
export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

const SVG = "http://www.w3.org/2000/svg";

export function drawing(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// Text of an element, touched only when it differs: a live region speaks each change.
export function say(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

export const seconds = (ms) => `${(ms / 1000).toFixed(ms < 100_000 ? 2 : 1)} s`;

export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;
