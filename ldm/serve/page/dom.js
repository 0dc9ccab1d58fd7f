// Elements of the page: made by one function, so that text is always text and never markup.

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/** A new element: attributes by name (`on...` are listeners, null and false are left out), then its children. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for the elements of a drawing. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A button that does something; it never sends a form. */
export function button(words, act, attributes = {}) {
  return el("button", { type: "button", class: "quiet", onclick: act, ...attributes }, words);
}

/** A `?` that explains its neighbour in a sentence; `tips.js` shows it. */
export function tip(about, sentence) {
  return el("button", { type: "button", class: "tip", "data-about": about, "data-tip": sentence }, "?");
}

/** Puts children in the place of an element's. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter(Boolean));
}
