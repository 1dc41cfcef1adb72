/**
 * What a client holds of an inbox: the notifications from the newest down to `oldest`, the end of what was read. Knows
 * no connection. By the rules of docs/protocol.md, "Catching up": of two states of a notification the one with the
 * greater rev counts, whichever comes first.
 */

/** @typedef {import("../notifications.js").Notification} Notification */

/**
 * @typedef {object} Page An answer of the server: newest first; fewer than asked for if they are long.
 * @property {Notification[]} items
 * @property {boolean} more older ones follow
 */

/** So many deleted ones are remembered: what is told of them comes within seconds. */
const MAX_GONE = 10_000;

/** @type {(a: string, b: string) => number} */
const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
/** Newest first. @type {(a: Notification, b: Notification) => number} */
export const byAge = (a, b) => compare(b.createdAt, a.createdAt) || compare(b._id, a._id);

export class View {
  /** By `_id`. @type {Map<string, Notification>} */ items = new Map();
  /** The revs of those that were deleted. @type {Map<string, string>} */ #gone = new Map();
  /** null before anything was read, and of an empty inbox. @type {Notification | null} */ oldest = null;
  /** There is nothing older. */ isComplete = false;
  /** The greatest rev that was told of. */ rev = "";
  /** What has a rev up to this one is seen, whatever it says itself. */ #seenUpTo = "";
  /** How many pages are being read: what they begin behind must stay. */ readers = 0;

  /** @param {string | null} type of the notifications that it holds; null: all @param {View} [before] that was seen before it */
  constructor(type = null, before) {
    this.type = type;
    this.#seenUpTo = before ? before.#seenUpTo : "";
  }

  /** Newest first. */
  get list() {
    return [...this.items.values()].sort(byAge);
  }

  /** Something was read, if only that there is nothing. */
  get isRead() {
    return this.isComplete || this.oldest !== null;
  }

  /** Whether it lies further down than was read. @param {Notification} item */
  isBeyond(item) {
    return !this.isComplete && this.oldest !== null && byAge(item, this.oldest) > 0;
  }

  /** Take notifications as they were at their revs, also deleted ones. Returns those that nothing was known of. @param {Notification[]} items */
  take(items) {
    const unknown = [];
    for (const item of items) {
      this.#note(item.rev);
      const rev = this.items.get(item._id)?.rev ?? this.#gone.get(item._id);
      if (rev !== undefined && !(rev < item.rev)) continue;
      if (item.delete) this.#forget(item._id, item.rev);
      else if (!this.isBeyond(item) && (this.type === null || item.type === this.type)) {
        this.items.set(item._id, item.rev <= this.#seenUpTo ? { ...item, seen: true } : item);
        this.#gone.delete(item._id);
        if (rev === undefined) unknown.push(item);
      }
    }
    return unknown;
  }

  /** Take a page, and reach down to its end if it begins in what was read. Who has all keeps having it. @param {Page} page */
  extend({ items, more }) {
    const last = items.at(-1);
    if (!this.isComplete && !(more && last && this.oldest && byAge(last, this.oldest) <= 0)) {
      this.isComplete = !more;
      this.oldest = last ?? this.oldest;
    }
    this.take(items);
  }

  /** They are seen, or unseen, as of `rev` (null: now). @param {string[]} ids @param {boolean} seen @param {string | null} rev */
  mark(ids, seen, rev) {
    this.#note(rev);
    for (const id of ids) {
      const item = this.items.get(id);
      if (!item || (rev !== null && item.rev >= rev)) continue;
      // An `unseen` that a later "seen all" has overtaken.
      const isSeen = seen || (rev !== null && rev <= this.#seenUpTo);
      this.items.set(id, { ...item, seen: isSeen, rev: rev ?? item.rev });
    }
  }

  /** All with a rev up to this one are seen; their revs stay. Returns which became so. @param {string} rev */
  markAll(rev) {
    const marked = [...this.items.values()].filter((item) => !item.seen && item.rev <= rev);
    for (const item of marked) this.items.set(item._id, { ...item, seen: true });
    if (rev > this.#seenUpTo) this.#seenUpTo = rev;
    return marked.map(({ _id }) => _id);
  }

  /** They are deleted as of `rev` (null: now). @param {string[]} ids @param {string | null} rev */
  remove(ids, rev) {
    this.#note(rev);
    for (const id of ids) {
      const known = this.items.get(id)?.rev ?? this.#gone.get(id);
      if (rev === null || known === undefined || known < rev) this.#forget(id, rev);
    }
  }

  /** Older ones are kept no longer. @param {string | null} createdAt null: all are */
  dropBefore(createdAt) {
    if (createdAt === null) return;
    for (const [id, item] of this.items) if (item.createdAt < createdAt) this.items.delete(id);
    if (this.oldest && this.oldest.createdAt < createdAt) this.isComplete = true;
  }

  /** Drop what lies beyond what was read: it comes again by paging, then without gaps. */
  settle() {
    for (const [id, item] of this.items) if (this.isBeyond(item)) this.items.delete(id);
  }

  /** Hold no more than so many, the newest; not while a page is being read. @param {number} count */
  trim(count) {
    if (this.readers || this.items.size <= count) return;
    this.oldest = this.list[count - 1];
    this.isComplete = false;
    this.settle();
  }

  /** @param {string} id @param {string | null} rev */
  #forget(id, rev) {
    this.items.delete(id);
    if (rev === null) return;
    this.#gone.delete(id);
    this.#gone.set(id, rev);
    if (this.#gone.size > MAX_GONE) this.#gone.delete(/** @type {string} */ (this.#gone.keys().next().value));
  }

  /** @param {string | null} rev */
  #note(rev) {
    if (rev !== null && rev > this.rev) this.rev = rev;
  }
}
