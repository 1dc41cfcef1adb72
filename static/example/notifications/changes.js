/**
 * Changes that were asked for and not yet answered, in their order: what is asked for without a connection, or is cut off
 * from its answer, is asked for again on the next one. All of them may be made twice without harm.
 */

import { Refusal } from "./refusal.js";

/** @typedef {import("../notifications.js").Changed} Changed */
/** @typedef {import("../notifications.js").Notification} Notification */
/** @typedef {import("./dialect1.js").Dialect1 | import("./dialect2.js").Dialect2} Dialect */
/** @typedef {import("./view.js").View} View */

/**
 * @typedef {object} Change
 * @property {string} name
 * @property {any} data `{ ids }`, or `{ all: true, upto }`
 * @property {(changed: Changed) => void} resolve
 * @property {(error: Error) => void} reject
 *
 * @typedef {object} Host
 * @property {() => Dialect | null} dialect that of a connection which is up to date
 * @property {() => View} view
 * @property {() => number} unseen of the whole inbox
 * @property {(error: Refusal) => void} refused
 */

const MAX_PAGE_SIZE = 100;

export class Changes {
  /** @type {Set<Change>} */ #waiting = new Set();

  /** @param {Host} host */
  constructor(host) {
    this.host = host;
  }

  /** Ask for a change, now or as soon as there is a connection. @param {string} name @param {any} data @returns {Promise<Changed>} */
  ask(name, data) {
    /** @type {Promise<Changed>} */
    const changed = new Promise((resolve, reject) => {
      const change = { name, data, resolve, reject };
      this.#waiting.add(change);
      this.#carryOut(change);
    });
    // Who does not wait for it hears of its failure all the same, by `refused`.
    changed.catch(() => {});
    return changed;
  }

  /** Ask that all be marked as seen which the user has been told of by now. @returns {Promise<Changed>} */
  askAllSeen() {
    const changed = this.#newestRev().then((upto) => this.ask("seen", { all: true, upto }));
    changed.catch(() => {});
    return changed;
  }

  /** Ask again for all that wait: there is a new connection. */
  askAgain() {
    for (const change of this.#waiting) this.#carryOut(change);
  }

  /** Nothing of it is to be done any more. @param {string} why */
  drop(why) {
    for (const { reject } of this.#waiting) reject(new Error(why));
    this.#waiting.clear();
  }

  /** @param {Change} change */
  async #carryOut(change) {
    const dialect = this.host.dialect();
    if (!dialect) return;
    const expected = this.#expected(change);
    try {
      const changed = await dialect.change(change.name, change.data);
      this.#waiting.delete(change);
      change.resolve({ ...expected, ...changed });
    } catch (error) {
      // Else the connection was lost.
      if (!(error instanceof Refusal)) return;
      this.#waiting.delete(change);
      change.reject(error);
      this.host.refused(error);
    }
  }

  /** What a change will change, as far as can be seen from here. @param {Change} change @returns {Changed} */
  #expected({ name, data }) {
    const { items } = this.host.view();
    /** @type {Notification[]} */
    const meant = data.all ? [...items.values()].filter(({ rev }) => rev <= data.upto) : data.ids.flatMap((/** @type {string} */ id) => items.get(id) ?? []);
    const ids = meant.filter(({ seen }) => name !== "seen" || !seen).map(({ _id }) => _id);
    return { ids, count: data.all ? this.host.unseen() : ids.length };
  }

  /** The newest that was told of, or was counted: what is marked as unseen far down has a newer one than all above it. */
  async #newestRev() {
    const { items, oldest, rev, type } = this.host.view();
    const dialect = this.host.dialect();
    const shown = [...items.values()].filter(({ seen }) => !seen).length;
    if (dialect?.version !== 2 || type !== null || oldest === null || shown >= this.host.unseen()) return rev;
    try {
      const page = await dialect.page({ before: oldest._id, limit: MAX_PAGE_SIZE, seen: false }, () => {});
      return page.items.reduce((newest, item) => (item.rev > newest ? item.rev : newest), rev);
    } catch {
      return rev;
    }
  }
}
