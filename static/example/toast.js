/** A word at the lower edge about what was just done, with a way back while there is one. */

import { announce, byId, setShown } from "./dom.js";

const SHOWN_MS = 8_000;
const MAX_UNDONE = 20;

/** @typedef {() => Promise<unknown>} Undo */

export class Toast {
  /** The latest last. @type {Undo[]} */ #undos = [];
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;

  constructor() {
    const toast = byId("toast");
    byId("undo").addEventListener("click", () => this.undo());
    // Who is about to press it is not hurried.
    for (const name of ["pointerenter", "focusin"]) toast.addEventListener(name, () => clearTimeout(this.#timer));
    for (const name of ["pointerleave", "focusout"]) toast.addEventListener(name, () => this.#hideLater());
  }

  /** Say something. @param {string} text @param {Undo} [undo] takes it back @param {string} [label] of the button for that */
  say(text, undo, label = "Undo") {
    byId("toast-text").textContent = text;
    byId("undo").textContent = label;
    setShown("undo", undo !== undefined);
    byId("toast").hidden = false;
    announce(undo ? `${text}. Press U in the list to undo.` : text);
    if (undo) this.#undos = [...this.#undos, undo].slice(-MAX_UNDONE);
    this.#hideLater();
  }

  /** Take back the latest that was not taken back, also when its toast has gone. */
  async undo() {
    const undo = this.#undos.pop();
    this.#hide();
    if (!undo) return;
    try {
      await undo();
    } catch {
      this.say("That could not be undone.");
    }
  }

  /** Nothing of it concerns who comes next. */
  clear() {
    this.#undos = [];
    this.#hide();
  }

  #hideLater() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#hide(), SHOWN_MS);
  }

  #hide() {
    clearTimeout(this.#timer);
    setShown("undo", false);
    byId("toast").hidden = true;
  }
}
