// A client of dialect 2 without a socket: what it makes of the frames that it is told, by the rules of docs/protocol.md.
// `node client.mjs [dialect-2.jsonl]` checks it against the script. Take it as a start for one of your own.

import { readFileSync } from "node:fs";
import { argv, exit } from "node:process";
import { fileURLToPath } from "node:url";

export class Inbox {
  documents = new Map(); // by _id; tombstones stay, so that nothing late brings them back
  since = null;
  counts = null;
  mustPage = true; // the pages have to be read, from the newest on
  mustSync = false; // it has to be asked what has changed
  #allSeenUpto = "";

  hear({ name, data }) {
    if (name === "joined") {
      this.counts = data.counts;
      if (data.since !== null) this.#beginAnew(data.since); // else what has changed follows
    } else if (name === "content") {
      data.documents.forEach((each) => this.#take(each));
      this.mustPage &&= data.older;
    } else if (name === "sync") {
      if (data.reset) this.#beginAnew(data.upto);
      data.documents.forEach((each) => this.#take(each));
      for (const [id, { createdAt }] of this.documents) {
        if (data.floor !== null && createdAt < data.floor) this.documents.delete(id);
      }
      this.since = data.upto;
      this.mustSync &&= data.more;
    } else if (name === "notification" || name === "restored") {
      this.#take(data);
    } else if (name === "seen" || name === "unseen" || name === "delete") {
      this.#change(name, data);
    } else if (name === "counts") {
      this.counts = data;
    } else if (name === "missed") {
      this.mustSync = true;
    }
  }

  #beginAnew(since) {
    this.documents.clear();
    this.#allSeenUpto = "";
    this.since = since;
    this.mustPage = true;
    this.mustSync = false;
  }

  #take(document) {
    if (document.rev <= (this.documents.get(document._id)?.rev ?? "")) return;
    const seen = document.seen || document.rev <= this.#allSeenUpto;
    this.documents.set(document._id, { ...document, seen });
  }

  #change(name, data) {
    if ("changed" in data) return; // the answer to "all": what has really been reached was pushed before
    if (data.all) {
      if (data.upto > this.#allSeenUpto) this.#allSeenUpto = data.upto;
      // Their revs stay: what has become of them since is still news.
      for (const each of this.documents.values()) each.seen ||= each.rev <= data.upto;
      return;
    }
    const changes = { seen: { seen: true }, unseen: { seen: false }, delete: { delete: true } }[name];
    for (const id of data.ids) {
      const known = this.documents.get(id);
      // Of a tombstone that is `seen` the `restored` before it is yet to come: its rev must not be passed.
      if (known && !known.delete) this.#take({ ...known, ...changes, rev: data.rev });
    }
  }

  get state() {
    const order = (a, b) => (a.createdAt + a._id < b.createdAt + b._id ? 1 : -1);
    const kept = [...this.documents.values()].filter((each) => !each.delete).sort(order);
    const must = [this.mustPage && "page", this.mustSync && "sync"].filter(Boolean);
    return { inbox: kept.map(({ _id, seen }) => [_id, seen]), since: this.since, counts: this.counts, must };
  }
}

// The same with its keys in order, as text.
function text(value) {
  const sorted = (_, each) =>
    each && typeof each === "object" && !Array.isArray(each) ? Object.fromEntries(Object.entries(each).sort()) : each;
  return JSON.stringify(value, sorted);
}

export function check(lines, make = () => new Inbox()) {
  let client;
  const wrong = [];
  for (const { scenario, step, note, frames, state } of lines.map((line) => JSON.parse(line))) {
    if (step === 1) client = make();
    frames.forEach((frame) => client.hear(frame));
    if (text(client.state) !== text(state)) {
      wrong.push(`${scenario}, step ${step}: ${note}\n  expected ${text(state)}\n  found    ${text(client.state)}`);
    }
  }
  return wrong;
}

if (argv[1] === fileURLToPath(import.meta.url)) {
  const file = argv[2] ?? fileURLToPath(new URL("dialect-2.jsonl", import.meta.url));
  const lines = readFileSync(file, "utf8").trim().split("\n");
  const wrong = check(lines);
  console.log(wrong.length ? wrong.join("\n") : `${lines.length} steps, all as they have to be`);
  exit(wrong.length ? 1 : 0);
}
