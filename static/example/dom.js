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

/** The address, absolute, if it is one that a click may follow: http or clearly a path; else null. @param {string} text */
export function linkTo(text) {
  return address(text, /^(https?:\/\/|\.{0,2}\/|[?#])/i);
}

/** The address, absolute, if it is one to load a picture from; else null. @param {string} text */
export function pictureFrom(text) {
  return address(text, /^(https?:\/\/|\.{0,2}\/|data:image\/)/i);
}

/** @param {string} text @param {RegExp} allowed how it must begin */
function address(text, allowed) {
  const trimmed = text.trim();
  if (!allowed.test(trimmed) || !URL.canParse(trimmed, location.href)) return null;
  return new URL(trimmed, location.href).href;
}

/**
 * Let a button be pressed, or not. It stays where the focus can be, unlike with `disabled`: a button that is disabled
 * when it is pressed would send the keyboard's user back to the top of the page. @param {string} id @param {boolean} can
 */
export function setUsable(id, can) {
  byId(id).setAttribute("aria-disabled", String(!can));
}

/** @param {string} id */
export function isUsable(id) {
  return byId(id).getAttribute("aria-disabled") !== "true";
}

/** Show or hide; what is hidden leaves the focus, if it has it, to the inbox. @param {string} id @param {boolean} isShown */
export function setShown(id, isShown) {
  const element = byId(id);
  if (!isShown && element === document.activeElement) byId("inbox").focus({ preventScroll: true });
  element.hidden = !isShown;
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
