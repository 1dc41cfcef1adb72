/**
 * Dialect 2 of the socket protocol (docs/protocol.md) on one connection: what is asked has an id, and its answer comes with it.
 */

import { Refusal } from "./refusal.js";

/** @typedef {import("../notifications.js").Notification} Notification */
/** @typedef {import("../notifications.js").Counts} Counts */
/** @typedef {import("./view.js").Page} Page */

/**
 * @typedef {object} Joined
 * @property {string} user
 * @property {string | null} since how far the client is then; null: that follows
 * @property {Counts} counts
 * @property {string | null} floor older ones are kept no longer
 * @property {string | null} ticket by which to come back
 * @property {number} heartbeat_s how often the server shows by itself that it is there
 *
 * @typedef {object} Chunk Some of what has changed, as it is now, deleted ones too.
 * @property {Notification[]} documents
 * @property {string} upto how far the client is then
 * @property {string | null} floor
 * @property {boolean} reset what the client has is worth nothing
 * @property {string | null} [ticket]
 *
 * @typedef {object} Host What the client does with what it is told.
 * @property {(frame: object) => void} send
 * @property {(data: Joined) => void} joined
 * @property {(chunk: Chunk) => void} changed
 * @property {(name: string, data: any, isAnswer?: boolean) => void} told
 * @property {(error: Refusal) => void} refused what exactly is not known
 * @property {(frame: any) => void} isClassic the server speaks the classic dialect only: this is its first frame
 *
 * @typedef {{ before: string | null, limit: number, type?: string | null, seen?: boolean }} Where
 *
 * @typedef {object} Request One that waits for its answer, or for the last part of it.
 * @property {string} name
 * @property {any} data
 * @property {(name: string, data: any) => void} onPart called at once: what comes behind it may come in the same moment
 * @property {any[]} parts
 * @property {(parts: any[]) => void} resolve
 * @property {(error: Error) => void} reject
 */

export class Dialect2 {
  version = 2;
  /** @type {Map<number, Request>} */ #requests = new Map();
  #lastId = 0;
  #isSure = false;

  /** @param {Host} host */
  constructor(host) {
    this.host = host;
  }

  get isWaiting() {
    return this.#requests.size > 0;
  }

  /** Sign in. Returns whether all that has changed since has come. @param {object} proof @param {string | null} since */
  async join(proof, since) {
    const { host } = this;
    const onPart = (/** @type {string} */ name, /** @type {any} */ data) => (name === "joined" ? host.joined(data) : host.changed(data));
    const parts = await this.#request("join", { ...proof, v: 2, ...(since !== null && { since }) }, onPart);
    return parts.length > 1;
  }

  /** Ask what has changed. @param {string} since */
  async sync(since) {
    await this.#request("sync", { since }, (_, data) => this.host.changed(data));
  }

  /** Ask whether anybody is there. */
  async ping() {
    await this.#request("ping", undefined, () => {});
  }

  /** @param {Where} where @param {(page: Page) => void} onPage @returns {Promise<Page>} */
  async page(where, onPage) {
    const toPage = (/** @type {any} */ { documents, older }) => ({ items: documents, more: older });
    const [data] = await this.#request("content", where, (_, part) => onPage(toPage(part)));
    return toPage(data);
  }

  /**
   * Change notifications. Returns which really changed; of `all` how many.
   * @param {string} name @param {object} data @returns {Promise<{ ids?: string[], count: number }>}
   */
  async change(name, data) {
    // The answer repeats what all screens were told: who heard that already does not heed it.
    const parts = await this.#request(name, data, (_, part) => this.host.told(name, part, true));
    if (parts[0].all) return { count: parts[0].changed };
    const ids = parts.flatMap((part) => part.ids);
    return { ids, count: ids.length };
  }

  /** @param {any} frame */
  receive(frame) {
    const { name, id, data } = frame;
    if (!this.#isSure && id === undefined && isClassic(name, data)) {
      this.host.isClassic(frame);
      return;
    }
    this.#isSure = true;
    if (id !== undefined) this.#onAnswer(name, id, data);
    else if (name === "error") this.host.refused(new Refusal(data));
    else if (name === "sync") this.host.changed(data);
    else this.host.told(name, data);
  }

  /** @param {string} name @param {number} id @param {any} data */
  #onAnswer(name, id, data) {
    const request = this.#requests.get(id);
    if (!request) return;
    if (name === "error" || !data.more) this.#requests.delete(id);
    if (name === "error") {
      request.reject(new Refusal(data));
      return;
    }
    request.parts.push(data);
    request.onPart(name, data);
    if (!data.more) request.resolve(request.parts);
  }

  /** What still waits is left to another dialect. @returns {Request[]} */
  handOver() {
    const requests = [...this.#requests.values()];
    this.#requests.clear();
    return requests;
  }

  /** Nothing will be answered any more. @param {string} why */
  end(why) {
    for (const { reject } of this.handOver()) reject(new Error(why));
  }

  /** @param {string} name @param {any} data @param {Request["onPart"]} onPart @returns {Promise<any[]>} */
  #request(name, data, onPart) {
    return new Promise((resolve, reject) => {
      const id = ++this.#lastId;
      this.#requests.set(id, { name, data, onPart, parts: [], resolve, reject });
      this.host.send({ name, id, data });
    });
  }
}

/** Whether this can only come from a server that did not heed the `v` of a join. @param {string} name @param {any} data */
function isClassic(name, data) {
  return name === "count" || typeof data === "string" || (name === "error" && data.retryable === undefined);
}
