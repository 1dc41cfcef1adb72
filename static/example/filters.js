/** The types in the inbox, each with its counts: a click shows those of one type only. */

import { byId, make } from "./dom.js";

/** @typedef {import("./notifications.js").Counts} Counts */

/** More would be no choice any more; the types with the most are shown. */
const MAX_SHOWN = 10;

export class Filters {
  #bar = byId("filters");
  /** By type; null: all. @type {Map<string | null, HTMLElement>} */ #chips = new Map();
  #canChoose = false;

  /** @param {{ choose: (type: string | null) => void }} listener */
  constructor(listener) {
    this.listener = listener;
  }

  /** @param {Counts} counts @param {string | null} chosen */
  show({ unseen, total, types }, chosen) {
    const most = Object.entries(types).sort(([, a], [, b]) => b.total - a.total).slice(0, MAX_SHOWN);
    const shown = new Map(most);
    if (chosen !== null && !shown.has(chosen)) shown.set(chosen, Object.hasOwn(types, chosen) ? types[chosen] : { unseen: 0, total: 0 });
    const rows = [...shown].sort(([a], [b]) => a.localeCompare(b, "en"));
    const chips = [this.#chip(null, { unseen, total }, chosen), ...rows.map(([type, counts]) => this.#chip(type, counts, chosen))];
    for (const [type, chip] of this.#chips) {
      if (chips.includes(chip)) continue;
      if (chip === document.activeElement) chips[0].focus();
      chip.remove();
      this.#chips.delete(type);
    }
    // Only new ones are put in: to be moved would cost a chip the focus.
    let place = this.#bar.firstElementChild;
    for (const chip of chips) {
      if (chip === place) place = place.nextElementSibling;
      else this.#bar.insertBefore(chip, place);
    }
    // A choice between all and all is none.
    this.#bar.hidden = rows.length < 2 && chosen === null;
  }

  /** @param {boolean} canChoose */
  setUsable(canChoose) {
    this.#canChoose = canChoose;
    for (const chip of this.#chips.values()) chip.setAttribute("aria-disabled", String(!canChoose));
  }

  /** Drawn once. @param {string | null} type @param {{ unseen: number, total: number }} counts @param {string | null} chosen */
  #chip(type, { unseen, total }, chosen) {
    let chip = this.#chips.get(type);
    if (!chip) {
      chip = make("button", { class: "chip filter", type: "button", "aria-disabled": String(!this.#canChoose) },
        make("span", { class: "filter-name" }, type === null ? "All" : type || "No type"), make("span", { class: "filter-count" }), make("span", { class: "filter-unseen" }));
      chip.addEventListener("click", () => this.#canChoose && this.listener.choose(type));
      this.#chips.set(type, chip);
    }
    const [, countOf, unseenOf] = /** @type {any} */ (chip.children);
    countOf.textContent = String(total);
    unseenOf.replaceChildren(...(unseen ? [String(unseen), make("span", { class: "visually-hidden" }, " unseen")] : []));
    chip.setAttribute("aria-pressed", String(type === chosen));
    return chip;
  }
}
