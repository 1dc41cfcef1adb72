/**
 * The classic dialect of the socket protocol (docs/api.md) on one connection, for servers that know no other: pages are
 * answered by what they were asked with, changes by what all screens are told.
 */

import { Refusal } from "./refusal.js";

/** @typedef {import("./dialect2.js").Request} Request */
/** @typedef {import("./dialect2.js").Where} Where */
/** @typedef {import("./view.js").Page} Page */

/** @typedef {Pick<Request, "resolve" | "reject">} Waiting */
/** @typedef {Pick<Request, "data" | "onPart" | "resolve" | "reject">} Question */

export class Dialect1 {
  version = 1;
  /** The sign-in is answered: all unseen notifications and their count have come. */ #isJoined = false;
  /** @type {Waiting | undefined} */ #joining;
  /** Pages asked for. @type {Question[]} */ #questions;

  /** @param {import("./dialect2.js").Host} host @param {Request[]} requests those that were made in dialect 2 */
  constructor(host, requests) {
    this.host = host;
    this.#joining = requests.find(({ name }) => name === "join");
    this.#questions = requests.filter(({ name }) => name === "content");
  }

  get isWaiting() {
    return this.#questions.length > 0;
  }

  /** Sign in. Returns false: the inbox is to be read anew. @param {object} proof @returns {Promise<boolean>} */
  async join(proof) {
    this.#isJoined = false;
    await new Promise((resolve, reject) => {
      this.#joining = { resolve, reject };
      this.host.send({ name: "join", data: proof });
    });
    return false;
  }

  async sync() {
    await this.page({ before: null, limit: 1 }, () => {});
  }

  /** @param {Where} where @param {(page: Page) => void} onPage @returns {Promise<Page>} */
  async page({ before, limit, type = null }, onPage) {
    if (type !== null) throw tooOld();
    const [{ documents, older }] = await new Promise((resolve, reject) => {
      const onPart = (/** @type {string} */ _, /** @type {any} */ part) => onPage({ items: part.documents, more: part.older });
      this.#questions.push({ data: { before }, onPart, resolve, reject });
      this.host.send({ name: "content", data: { before, limit } });
    });
    return { items: documents, more: older };
  }

  /** Change notifications. Returns null: which of them really changed is not told. @param {string} name @param {any} data */
  async change(name, data) {
    if (name !== "seen" && name !== "delete") throw tooOld();
    this.host.send({ name, data: data.all ? { all: true } : data });
    return null;
  }

  /** @param {any} frame */
  receive(frame) {
    const { name, data, before, more } = frame;
    const value = typeof data === "string" ? JSON.parse(data) : data;
    if (name === "notification" && "before" in frame) this.#onPage(before, { documents: value, older: more });
    else if (name === "notification") this.host.told(this.#isJoined ? "notifications" : "unseen notifications", value);
    else if (name === "seen" || name === "delete") this.host.told(name, { ids: value, rev: null });
    else if (name === "count") this.#onCount(value);
    else if (name === "error") this.#onError(new Refusal(value));
  }

  /** @param {string | null} before that of the question it answers @param {{ documents: any[], older: boolean }} part */
  #onPage(before, part) {
    const index = this.#questions.findIndex(({ data }) => data.before === before);
    // None: an error, which does not say what it answers, was taken for the answer.
    if (index < 0) return;
    const [question] = this.#questions.splice(index, 1);
    question.onPart("content", part);
    question.resolve([part]);
  }

  /** The first one ends the answer to the join. @param {{ unseen: number }} count */
  #onCount({ unseen }) {
    this.#isJoined = true;
    this.host.told("count", { unseen });
    this.#joining?.resolve([]);
    this.#joining = undefined;
  }

  /** @param {Refusal} error */
  #onError(error) {
    if (this.#isJoined) {
      this.#questions.shift()?.reject(error);
      this.host.refused(error);
    } else if (error.code === "store_unavailable") {
      // Without its store the server keeps the join in mind, and answers it later.
      this.host.refused(error);
    } else this.#joining?.reject(error);
  }

  /** Nothing will be answered any more. @param {string} why */
  end(why) {
    for (const { reject } of [...this.#questions.splice(0), ...(this.#joining ? [this.#joining] : [])]) reject(new Error(why));
    this.#joining = undefined;
  }
}

function tooOld() {
  return new Refusal({ code: "unsupported", message: "the server is too old for this" });
}
