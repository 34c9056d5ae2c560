// Elements in one call.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** An HTML element; attributes that start with "on" are listeners, null and false are left out.
 * @param {string} tag @param {Record<string, unknown>} [attributes] @param {...(Node | string | null)} children
 * @returns {HTMLElement} */
export const html = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);

/** An SVG element.
 * @param {string} tag @param {Record<string, unknown>} [attributes] @param {...(Node | string | null)} children
 * @returns {SVGElement} */
export const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);

/** Set a text only where it differs, so that nothing is announced twice.
 * @param {Element} element @param {string} text */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A number that is unique in this page.
 * @returns {number} */
export const uid = (() => {
  let last = 0;
  return () => ++last;
})();

/** Follow a pressed pointer until it is let go: `move(event)` while it moves, at most once per frame and always for the
 * last place, then `end()` once, also when the pointer is taken away. Capture keeps the events coming outside the
 * element.
 * @param {PointerEvent} start @param {(event: PointerEvent) => void} move @param {() => void} end */
export function follow(start, move, end) {
  const target = /** @type {Element} */ (start.currentTarget);
  const controller = new AbortController();
  const options = { signal: controller.signal };
  /** @type {PointerEvent | null} */
  let last = null;
  let frame = 0;
  const go = () => {
    const event = last;
    last = null;
    if (event) move(event);
  };
  const wait = (event) => {
    if (event.pointerId !== start.pointerId) return; // another finger
    if (!last) frame = requestAnimationFrame(go);
    last = event;
  };
  const stop = (event) => {
    if (controller.signal.aborted || event.pointerId !== start.pointerId) return;
    controller.abort();
    cancelAnimationFrame(frame);
    go();
    end();
  };
  target.setPointerCapture?.(start.pointerId);
  target.addEventListener("pointermove", wait, options);
  const ends = ["pointerup", "pointercancel", "lostpointercapture"];
  for (const name of ends) target.addEventListener(name, stop, options);
}

/** Whether a key takes what was typed: Enter, also with the host's key that runs the graph, and the host's key that saves.
 * @param {KeyboardEvent} event @returns {boolean} */
export const takes = ({ key, ctrlKey, metaKey }) =>
  key === "Enter" || ((ctrlKey || metaKey) && key.toLowerCase() === "s");

/** A percentage with as many digits as matter.
 * @param {number} share @returns {string} */
export const percent = (share) => `${(share * 100).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;
