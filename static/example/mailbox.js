/** The demo's mailbox: the mails that would have gone out, had an SMTP host been configured. */

import { ago, byId, make } from "./dom.js";

const POLL_MS = 5_000;
/** After sending: the mail is written a moment after the answer. */
const SOON_MS = 400;

/** @typedef {{ file: string, subject: string, to: string[], date: string, content_type: string, text: string }} Mail */

export class Mailbox {
  #list = byId("mails");
  /** @type {Map<string, HTMLElement>} by file */ #rows = new Map();
  /** @type {ReturnType<typeof setInterval> | undefined} */ #timer;

  start() {
    this.stop();
    this.#timer = setInterval(() => document.hidden || this.#refresh(), POLL_MS);
    this.#refresh();
  }

  stop() {
    clearInterval(this.#timer);
  }

  refreshSoon() {
    setTimeout(() => this.#refresh(), SOON_MS);
  }

  async #refresh() {
    try {
      const answer = await fetch("/demo/mailbox");
      if (answer.ok) this.#show((await answer.json()).mails);
      else if (answer.status === 404) this.#explain("Mail goes out by SMTP: see the real mailboxes.", 0);
    } catch {
      // The connection's state says it already.
    }
  }

  /** @param {Mail[]} mails newest first */
  #show(mails) {
    this.#explain("No SMTP host is configured: mails are kept as files under data/mail/.", mails.length);
    const files = new Set(mails.map(({ file }) => file));
    for (const [file, row] of this.#rows) {
      if (files.has(file)) continue;
      row.remove();
      this.#rows.delete(file);
    }
    // Only new ones are put in: to be moved would cost a row the focus.
    let place = this.#list.firstElementChild;
    for (const row of mails.map((mail) => this.#row(mail))) {
      if (row === place) place = place.nextElementSibling;
      else this.#list.insertBefore(row, place);
    }
  }

  /** @param {string} text @param {number} count */
  #explain(text, count) {
    byId("mailbox-note").textContent = text;
    byId("mailbox-count").textContent = count ? `${count} ${count === 1 ? "mail" : "mails"}` : "";
  }

  /** Drawn once; it may be open. @param {Mail} mail */
  #row(mail) {
    let row = this.#rows.get(mail.file);
    if (!row) this.#rows.set(mail.file, (row = draw(mail)));
    const date = new Date(mail.date);
    /** @type {HTMLElement} */ (row.querySelector("time")).textContent = ago(date);
    // One message may go out in parts, as its recipients become due.
    /** @type {HTMLElement} */ (row.querySelector(".mail-to")).textContent = `to ${mail.to.join(", ")}`;
    return row;
  }
}

/** @param {Mail} mail */
function draw(mail) {
  const date = new Date(mail.date);
  return make("li", {},
    make("details", { class: "mail" },
      make("summary", {},
        make("span", { class: "mail-subject" }, mail.subject || "(no subject)"),
        make("time", { dateTime: mail.date, title: date.toLocaleString("en") }),
        make("span", { class: "mail-to muted" })),
      make("p", { class: "mail-facts muted" }, `${mail.content_type} · ${mail.file}`),
      make("pre", { role: "group", tabIndex: 0, "aria-label": "The text of the mail" }, mail.text)));
}
