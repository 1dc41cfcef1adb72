/** Small helpers to build the page. Text is set as text; nothing here, or anywhere on the page, takes HTML. */

/** An element of index.html. @param {string} id @returns {any} */
export function byId(id) {
  return document.getElementById(id);
}

/**
 * A new element with properties, `class` and attributes (those with a dash, and `role`), and children (texts or elements; null: none).
 * @param {string} tag @param {Record<string, any>} [properties] @param {(Node | string | null)[]} children
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else /** @type {any} */ (element)[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** One of the symbols in index.html. @param {string} name */
export function glyph(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** The address, absolute, if it is one that a click may follow; else null: `javascript:` and the like. @param {string} text */
export function linkTo(text) {
  return parsedUrl(text, (url) => url.protocol === "http:" || url.protocol === "https:");
}

/** The address, absolute, if it is one to load a picture from; else null. @param {string} text */
export function pictureFrom(text) {
  return parsedUrl(text, (url) => /^(https?:|data:image\/)/.test(url.href));
}

/** @param {string} text @param {(url: URL) => boolean} isAllowed */
function parsedUrl(text, isAllowed) {
  if (!text.trim() || !URL.canParse(text, location.href)) return null;
  const url = new URL(text, location.href);
  return isAllowed(url) ? url.href : null;
}

/** "now", "5 min ago", "yesterday", then the date. @param {Date} instant @param {number} [now] */
export function ago(instant, now = Date.now()) {
  const seconds = (instant.getTime() - now) / 1000;
  if (seconds > -45) return "now";
  for (const [unit, length, limit] of /** @type {const} */ ([["minute", 60, 3600], ["hour", 3600, 86400], ["day", 86400, 7 * 86400]])) {
    if (-seconds < limit) return relative.format(Math.round(seconds / length), unit);
  }
  return instant.toLocaleDateString("en", { day: "numeric", month: "short", year: "numeric" });
}

const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });

/** Tell those who do not see the page. @param {string} text */
export function announce(text) {
  byId("announcer").textContent = text;
}
