/** The list of notifications: draws what the client holds, and tells of what the user wants with one of them. */

import { ago, byId, glyph, linkTo, make, pictureFrom } from "./dom.js";

/** @typedef {import("./notifications.js").Notification} Notification */

/** How long a new one stands out. */
const FRESH_MS = 4_000;
const CLOCK_MS = 30_000;

export class InboxList {
  /** @type {Map<string, { item: Notification, element: HTMLElement }>} */ #rows = new Map();
  #list = byId("list");
  /** @type {HTMLElement | null} */ #entry = null;

  /** @param {{ seen: (id: string) => void, delete: (id: string) => void, undo: () => void }} commands */
  constructor(commands) {
    this.commands = commands;
    this.#list.addEventListener("keydown", (event) => this.#onKey(event));
    this.#list.addEventListener("focusin", (event) => this.#setEntry(rowOf(event.target)));
    setInterval(() => this.#tick(), CLOCK_MS);
  }

  /** Draw these, newest first; what is already drawn stays as it is, and keeps the focus. @param {Notification[]} items */
  show(items) {
    this.#drop(new Set(items.map((item) => item._id)));
    let place = this.#list.firstElementChild;
    for (const item of items) {
      const element = this.#row(item);
      if (element === place) place = place.nextElementSibling;
      else this.#list.insertBefore(element, place);
    }
    if (!this.#entry?.isConnected) this.#setEntry(/** @type {HTMLElement | null} */ (this.#list.firstElementChild));
  }

  /** Let one stand out for a moment: it has just come. @param {string} id */
  highlight(id) {
    const element = this.#rows.get(id)?.element;
    element?.classList.add("fresh");
    setTimeout(() => element?.classList.remove("fresh"), FRESH_MS);
  }

  /** Move the focus to the first unseen one, else to the first. */
  focus() {
    const target = this.#list.querySelector(".unseen") ?? this.#list.firstElementChild;
    if (target instanceof HTMLElement) target.focus();
    else byId("inbox").focus();
  }

  /** Move the focus to this one. @param {string | undefined} id undefined, or not drawn: to the inbox */
  focusOn(id) {
    (this.#rows.get(id ?? "")?.element ?? byId("inbox")).focus();
  }

  /** Drop the rows of all but these. The focus goes to a neighbour. @param {Set<string>} kept */
  #drop(kept) {
    for (const [id, { element }] of this.#rows) {
      if (kept.has(id)) continue;
      const neighbour = element.nextElementSibling ?? element.previousElementSibling;
      const hadFocus = element.contains(document.activeElement);
      element.remove();
      this.#rows.delete(id);
      if (hadFocus) (neighbour instanceof HTMLElement ? neighbour : byId("inbox")).focus();
    }
  }

  /** The row of a notification, drawn or brought up to date. @param {Notification} item */
  #row(item) {
    let row = this.#rows.get(item._id);
    if (!row) {
      row = { item, element: this.#draw(item) };
      this.#rows.set(item._id, row);
    } else if (row.item === item) return row.element;
    row.item = item;
    row.element.classList.toggle("unseen", !item.seen);
    /** @type {HTMLElement} */ (row.element.querySelector(".unseen-mark")).hidden = item.seen;
    const seen = /** @type {HTMLButtonElement} */ (row.element.querySelector(".do-seen"));
    if (item.seen && document.activeElement === seen) row.element.focus();
    seen.hidden = item.seen;
    return row.element;
  }

  /** @param {Notification} item */
  #draw(item) {
    const name = item.title || item.content || item.type || "Notification";
    const created = new Date(item.createdAt);
    const heading = make("h2", { id: `n-${item._id}` }, make("span", { class: "unseen-mark" }, make("span", { class: "visually-hidden" }, "Unseen: ")), name);
    const element = make("li", { class: "item", tabIndex: -1, "aria-labelledby": `n-${item._id}`, "data-id": item._id },
      iconOf(item),
      make("div", { class: "item-body" },
        make("div", { class: "item-head" }, heading, make("time", { dateTime: item.createdAt, title: created.toLocaleString("en") }, ago(created))),
        item.title && item.content ? make("p", { class: "item-text" }, item.content) : null,
        imageOf(item),
        footOf(item)),
      make("div", { class: "item-actions" },
        this.#button("seen", "check", "Mark as seen", item),
        this.#button("delete", "trash", "Delete", item)));
    return element;
  }

  /** @param {"seen" | "delete"} command @param {string} symbol @param {string} label @param {Notification} item */
  #button(command, symbol, label, item) {
    const button = make("button", { class: `icon-button do-${command}`, type: "button", title: label, "aria-label": label, "aria-describedby": `n-${item._id}` }, glyph(symbol));
    button.addEventListener("click", () => this.commands[command](item._id));
    return button;
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    const row = rowOf(event.target);
    if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
    const id = /** @type {string} */ (row.dataset.id);
    // In a text that is longer than its place these keys scroll: only there it can have the focus.
    const isInText = /** @type {Element} */ (event.target).matches(".item-text");
    const target = !isInText && { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling,
      Home: this.#list.firstElementChild, End: this.#list.lastElementChild }[event.key];
    if (target instanceof HTMLElement) target.focus();
    else if (event.key === "s" || event.key === "S") this.commands.seen(id);
    else if (event.key === "Delete") this.commands.delete(id);
    else if (event.key === "u" || event.key === "U") this.commands.undo();
    else if (event.key === "Enter" && event.target === row) row.querySelector("a")?.click();
    else return;
    event.preventDefault();
  }

  /** One row at a time can be reached with Tab; from there the arrows lead on. @param {HTMLElement | null} row */
  #setEntry(row) {
    this.#entry?.setAttribute("tabindex", "-1");
    this.#entry = row;
    row?.setAttribute("tabindex", "0");
  }

  #tick() {
    for (const { item, element } of this.#rows.values()) {
      /** @type {HTMLElement} */ (element.querySelector("time")).textContent = ago(new Date(item.createdAt));
    }
  }
}

/** @param {EventTarget | null} target @returns {HTMLElement | null} */
function rowOf(target) {
  return target instanceof Element ? target.closest("li.item") : null;
}

/** A picture where the icon is an address, its text where it is short (an emoji), else an initial. @param {Notification} item */
function iconOf(item) {
  const tile = make("div", { class: "item-icon", "aria-hidden": "true" });
  const url = pictureFrom(item.icon);
  if (url) {
    const picture = make("img", { src: url, alt: "", loading: "lazy" });
    picture.addEventListener("error", () => picture.replaceWith(glyph("bell")));
    tile.append(picture);
  } else if (item.icon && !/^[\w-]+:/.test(item.icon)) tile.append(shortened(item.icon));
  else tile.append(glyph("bell"));
  return tile;
}

/** What fits a tile: all of a short text, the initial of a longer one. @param {string} text */
function shortened(text) {
  const letters = [...new Intl.Segmenter("en").segment(text.trim())].map(({ segment }) => segment);
  return letters.length > 2 ? letters[0].toUpperCase() : letters.join("");
}

/** @param {Notification} item */
function imageOf(item) {
  const url = pictureFrom(item.image);
  if (!url) return null;
  const image = make("img", { class: "item-image", src: url, alt: "", loading: "lazy" });
  image.addEventListener("error", () => image.remove());
  return image;
}

/** @param {Notification} item */
function footOf(item) {
  const url = linkTo(item.url);
  const link = url && make("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, make("span", {}, shownUrl(url)), glyph("out"));
  // An address that is no link is still something to read.
  const address = link || (item.url ? make("span", { class: "no-link" }, item.url) : null);
  return make("div", { class: "item-foot" }, address, item.type ? make("span", { class: "type" }, item.type) : null);
}

/** @param {string} url */
function shownUrl(url) {
  const { host, pathname } = new URL(url);
  return host === location.host ? pathname : host + (pathname === "/" ? "" : pathname);
}
