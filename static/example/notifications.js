/**
 * The client of the notification server: one signed-in user's inbox, kept equal to the server's over a live connection.
 *
 *     import { Notifications } from "/client/notifications.js";
 *
 *     const inbox = new Notifications({ url: "/notification", login: "alice", password: "alice" });
 *     inbox.on("list", ({ items }) => render(items));                              // newest first
 *     inbox.on("count", ({ unseen }) => (badge.textContent = unseen));
 *     inbox.on("notification", ({ notification }) => toast(notification.title));   // pushed just now
 *     inbox.on("reconnected", ({ missed }) => toast(`Back again, ${missed} new`));
 *     inbox.on("error", ({ code, message }) => console.warn(code, message));
 *     inbox.connect();
 *     // and then: inbox.seen([id]); inbox.seenAll(); inbox.delete([id]); await inbox.content(); inbox.close();
 *     // undo:     const { ids } = await inbox.delete([id]); inbox.restore(ids);   (of seen: inbox.markUnseen(ids))
 *     // by type:  inbox.on("counts", ({ types }) => chips(types)); await inbox.filter("order"); await inbox.filter(null);
 *
 * Instead of login and password it takes a `token`, or a function that fetches one: `token: () => fetchToken()`. The
 * function is asked when somebody is to prove who they are: at the first sign-in, and when the server says that the last
 * token has ended; in between the client comes back by the server's own tickets. If it throws, it is asked again later.
 *
 * It connects again by itself, after growing random delays or when the server said, whatever ended the connection but
 * `close()`, a refused sign-in and being signed out. Then it asks what has changed since, so that `items` ends equal to
 * the inbox, and what was changed here meanwhile is changed there. It speaks over a plain WebSocket; given the
 * constructor of sockjs-client, over whichever transport of that library gets through. With a server that knows the
 * classic dialect only (`dialect` is 1) it reads anew after a break what it held, and there are no counts by type, no
 * filter and no undo: these are refused with the code `unsupported`.
 *
 * The modules in notifications/ belong to it: who serves this file from elsewhere puts them beside it.
 *
 * The texts of a notification come from elsewhere: set them as `textContent`, never as HTML, and let only addresses
 * that you have checked become links.
 */

import { Changes } from "./notifications/changes.js";
import { Connection } from "./notifications/connection.js";
import { Dialect1 } from "./notifications/dialect1.js";
import { Dialect2 } from "./notifications/dialect2.js";
import { Refusal } from "./notifications/refusal.js";
import { byAge, View } from "./notifications/view.js";

/**
 * @typedef {object} Notification One in the inbox. Instants are ISO 8601 in UTC; texts may be empty.
 * @property {string} _id
 * @property {string} _userId
 * @property {string} nid the same for all users it was sent to
 * @property {string} type
 * @property {string} title
 * @property {string} content
 * @property {string} url
 * @property {string} icon
 * @property {string} image
 * @property {unknown} [data]
 * @property {string} createdAt
 * @property {string} updatedAt
 * @property {boolean} seen
 * @property {boolean} delete never of one in `items`
 * @property {string} rev opaque; of two versions of one notification the later has the greater string
 *
 * @typedef {object} Counts Of the whole inbox; `types`: of each type, the 100 with the most.
 * @property {number} unseen
 * @property {number} total
 * @property {Record<string, { unseen: number, total: number }>} types
 *
 * @typedef {object} Changed What a change has really changed. Asked for again after a break, it may have been made
 *   before, and then changes nothing.
 * @property {string[]} ids of "all seen": those in `items`
 * @property {number} count of "all seen": in the whole inbox
 *
 * @typedef {"closed" | "connecting" | "online" | "waiting"} State
 *   `connecting`: not yet signed in and up to date; `online`: live; `waiting` for the next try; `closed`: no more tries
 *
 * @typedef {object} Events The events and their data (`event.detail` for those who use `addEventListener`).
 * @property {{ items: Notification[], hasMore: boolean }} list `items` or `hasMore` changed
 * @property {{ notification: Notification }} notification one was pushed just now
 * @property {{ ids: string[] }} seen marked as seen, on this screen or another
 * @property {{ ids: string[] }} unseen marked as unseen again
 * @property {{ ids: string[] }} delete deleted, on this screen or another
 * @property {{ ids: string[] }} restore no longer deleted
 * @property {{ unseen: number }} count of the whole inbox
 * @property {Counts} counts of the whole inbox, by type; never with a server of the classic dialect
 * @property {{ state: State, retryInMs?: number }} state `retryInMs` comes with `waiting`
 * @property {{ missed: number }} reconnected online again, up to date; `missed`: how many unseen ones are new in `items`
 * @property {{ code: string, message: string, field?: string }} error the server's word; with `bad_credentials`,
 *   `signed_out`, `revoked` (and anything else that makes another try useless) the state becomes `closed`
 *
 * @typedef {object} Options
 * @property {string} [url] the server's socket, without `/websocket`; default `/notification`
 * @property {string} [login]
 * @property {string} [password]
 * @property {string | (() => string | Promise<string>)} [token] instead of login and password
 * @property {any} [SockJS] the constructor of sockjs-client
 * @property {string[]} [transports] those that SockJS may use; default all
 * @property {number} [pageSize] 1 to 100; default 30
 */

const MAX_PAGE_SIZE = 100;
/** So many are read again after a break, at most, and so many of what comes by itself are kept; the others by paging. */
const MAX_RELOADED = 500;
/** So many heartbeats of a server of dialect 2 may pass in silence; a page hears nothing of a WebSocket's pings. */
const SILENT_HEARTBEATS = 2;
/** When a server that could not say what has changed is asked again, at most. */
const SYNC_RETRY_MS = 10_000;
/** How the server closes a connection whose token has ended: a new one is all it takes. */
const TOKEN_EXPIRED = 3005;
/** From this close code on, coming back is useless until something has changed. */
const FIRST_FINAL_CODE = 3500;
/** Errors that answer a sign-in which may do better later, also where the server does not say so. */
const PASSING_ERRORS = ["busy", "rate_limited", "auth_unavailable", "too_many_connections", "store_unavailable"];

/** @type {() => Counts} */
const noCounts = () => ({ unseen: 0, total: 0, types: {} });

export class Notifications extends EventTarget {
  /** @type {Options & { url: string, pageSize: number }} */ #options;
  /** @type {State} */ #state = "closed";
  /** @type {Connection} */ #connection;
  /** That of the present connection. @type {Dialect1 | Dialect2 | null} */ #dialect = null;
  #version = 0;
  /** What the page sees. */ #view = new View();
  /** What is being read anew, and then seen. @type {View | null} */ #next = null;
  /** How far the view is; null: to be read anew. @type {string | null} */ #since = null;
  /** What came says that the view is worth nothing. */ #isStale = false;
  /** @type {string | null} */ #type = null;
  /** @type {string | null} */ #user = null;
  /** By which to come back. @type {string | null} */ #ticket = null;
  #quietMs = 0;
  #counts = noCounts();
  /** @type {Changes} */ #changes;
  #wasOnline = false;
  #missed = 0;
  /** Of the present connection it was said that it waits for the server's store. */ #isDelayed = false;
  #isListStale = false;

  /** @param {Options} options */
  constructor(options) {
    super();
    this.#options = { ...options, url: options.url ?? "/notification", pageSize: options.pageSize ?? 30 };
    this.#connection = new Connection(this.#options, {
      opening: () => this.#setState("connecting"),
      opened: () => this.#onOpened(),
      received: (frame) => this.#dialect?.receive(frame),
      closed: (code, reason) => this.#onClosed(code, reason),
      gone: (why) => this.#onGone(why),
      waiting: (retryInMs) => this.#setState("waiting", retryInMs),
      // Without an answer the connection is dropped.
      silent: () => this.#dialect?.ping?.().catch(() => {}),
      // Before that an answer is awaited anyway, and who asks before signing in is taken for a client of the classic dialect.
      doubtful: () => this.#state === "online" && this.#sync(),
      silentFor: () => (this.#state !== "online" || this.#dialect?.isWaiting ? 0 : this.#version === 2 ? this.#quietMs : null),
    });
    this.#changes = new Changes({
      dialect: () => (this.#state === "online" ? this.#dialect : null),
      view: () => this.#view,
      unseen: () => this.unseen,
      refused: (error) => this.#emit("error", error.detail),
    });
  }

  /** The inbox, or what the filter lets through, from the newest down to where it was read; beyond 500, new ones push off as many at the end. */
  get items() {
    return this.#view.list;
  }

  /** Whether there may be older ones for `content()`. */
  get hasMore() {
    return this.#view.oldest !== null && !this.#view.isComplete;
  }

  /** How many of the whole inbox are unseen. */
  get unseen() {
    return this.#counts.unseen;
  }

  /** How many there are in the whole inbox, by type; with a server of the classic dialect only `unseen` counts. */
  get counts() {
    return this.#counts;
  }

  /** The type that `filter` was last asked for; null: all. */
  get type() {
    return this.#type;
  }

  get state() {
    return this.#state;
  }

  /** What the server speaks: 2, or 1 (see above); 0 before that is known. */
  get dialect() {
    return this.#version;
  }

  /**
   * Listen to an event. Returns a function that ends it.
   * @template {keyof Events} Name
   * @param {Name} name
   * @param {(detail: Events[Name]) => void} listener
   */
  on(name, listener) {
    const handle = (/** @type {any} */ event) => listener(event.detail);
    this.addEventListener(name, handle);
    return () => this.removeEventListener(name, handle);
  }

  /** Sign in and stay connected. While waiting for the next try: try now. */
  connect() {
    if (this.#state === "closed") this.#wasOnline = false;
    this.#connection.start();
  }

  /** Sign out and forget the inbox. */
  close() {
    this.#end();
    this.#forget("signed out");
    this.#type = null;
    this.#view = new View();
  }

  // -- reading -----------------------------------------------------------------------------------------------------

  /**
   * Read a page; it joins `items`. `before`: the `_id` of one of `items`, null for the newest page; default: the next
   * older page. Returns at most `limit`, newest first; fewer: the inbox ends there. Rejects when the
   * connection breaks or the server cannot answer.
   * @param {{ before?: string | null, limit?: number }} [page]
   */
  async content({ before, limit = this.#options.pageSize } = {}) {
    if (this.#state !== "online") throw new Error("not connected");
    const view = this.#view;
    const start = before ? view.items.get(before) : before === null ? null : view.oldest;
    if (start === undefined) throw new Error(`${before} is not one of the items`);
    return this.#read(view, start, limit);
  }

  /**
   * Let `items` hold those of this type only (null: all), from the newest; counts and events stay those of the whole
   * inbox. Resolves when `items` does; rejects as `content`. @param {string | null} type
   */
  async filter(type) {
    if (this.#state !== "online") throw new Error("not connected");
    if (this.#version === 1 && type !== null) throw new Refusal({ code: "unsupported", message: "the server is too old for this" });
    this.#type = type;
    try {
      await this.#load(0);
    } catch (error) {
      if (error instanceof Refusal && this.#type === type) {
        this.#type = this.#view.type;
        this.#next = null;
      }
      throw error;
    }
  }

  // -- changing: on all screens of the user; without a connection as soon as it is back. `await` only what you need. -----

  /** Mark as seen. @param {string[]} ids */
  seen(ids) {
    return this.#changes.ask("seen", { ids });
  }

  /** Mark as unseen again. @param {string[]} ids */
  markUnseen(ids) {
    return this.#changes.ask("unseen", { ids });
  }

  /** @param {string[]} ids */
  delete(ids) {
    return this.#changes.ask("delete", { ids });
  }

  /** Take back that these were deleted. @param {string[]} ids */
  restore(ids) {
    return this.#changes.ask("restore", { ids });
  }

  /**
   * Mark all as seen, also those not in `items`, but nothing that comes after this moment (a server of the classic
   * dialect cannot tell). Returns false, and does nothing, if nothing has been read yet, or without a connection to a server of
   * the classic dialect.
   */
  seenAll() {
    if (!this.#view.isRead || (this.#version !== 2 && this.#state !== "online")) return false;
    return this.#changes.askAllSeen();
  }

  // -- the connection ----------------------------------------------------------------------------------------------

  #onOpened() {
    this.#isDelayed = false;
    this.#dialect = new Dialect2({
      send: (frame) => this.#connection.send(frame),
      joined: (data) => this.#onJoined(data),
      changed: (chunk) => this.#onChanged(chunk),
      told: (name, data, isAnswer) => this.#onTold(name, data, isAnswer),
      refused: (error) => this.#emit("error", error.detail),
      isClassic: (frame) => this.#onClassic(frame),
    });
    this.#enter();
  }

  /** @param {any} frame */
  #onClassic(frame) {
    const dialect = /** @type {Dialect2} */ (this.#dialect);
    this.#dialect = new Dialect1(dialect.host, dialect.handOver());
    this.#version = 1;
    this.#since = this.#type = null;
    if (this.#next) this.#next.type = null;
    this.#dialect.receive(frame);
  }

  /** Sign in, and come up to date. */
  async #enter() {
    const connection = this.#connection.current;
    const isOver = () => connection !== this.#connection.current;
    const { login, password, token } = this.#options;
    const ticket = this.#ticket;
    try {
      const own = ticket ? null : token === undefined ? { login, password } : { token: typeof token === "function" ? await token() : token };
      if (isOver()) return;
      this.#missed = 0;
      this.#isStale = false;
      const joining = /** @type {Dialect2} */ (this.#dialect).join(own ?? { ticket }, this.#since);
      // Does not wait for the join's answer: that saves a round trip.
      const loading = own && this.#since === null ? this.#load() : null;
      const [isUpToDate] = await Promise.all([joining, loading]);
      if (isOver()) return;
      for (let isRead = loading || isUpToDate; !isRead || this.#isStale; isRead = true) await this.#load();
      if (!isOver()) this.#onUpToDate();
    } catch (error) {
      if (!isOver()) this.#onRefused(error, ticket !== null);
    }
  }

  /** @param {unknown} error @param {boolean} isOfTicket */
  #onRefused(error, isOfTicket) {
    if (!(error instanceof Refusal)) {
      // The page's own function had no token, or the inbox could not be read.
      this.#connection.lost("could not sign in");
      return;
    }
    const isPassing = error.retryable || PASSING_ERRORS.includes(error.code);
    if (isOfTicket && !isPassing) {
      this.#ticket = null;
      this.#enter();
      return;
    }
    if (isPassing || (error.code === "token_expired" && typeof this.#options.token === "function")) {
      this.#connection.lost(error.message, error.retryMs);
    } else this.#end();
    this.#emit("error", error.detail);
  }

  #onUpToDate() {
    this.#setState("online");
    // A listener may have closed it.
    if (this.#state !== "online") return;
    this.#connection.settled();
    this.#listChanged();
    if (this.#wasOnline) this.#emit("reconnected", { missed: this.#missed });
    this.#wasOnline = true;
    this.#changes.askAgain();
  }

  /** @param {number} code @param {string} reason */
  #onClosed(code, reason) {
    if (code >= FIRST_FINAL_CODE && code < 4000) {
      this.#end();
      this.#emit("error", { code: reason, message: reason === "signed_out" ? "you were signed out" : "access has ended" });
      return;
    }
    if (code === TOKEN_EXPIRED) this.#ticket = null;
    if (code === TOKEN_EXPIRED && this.#state === "online") this.#connection.renew("the token has ended");
    else this.#connection.lost("the connection was closed");
  }

  /** @param {string} why */
  #onGone(why) {
    // Of what was being read there is no end: it is to be read anew.
    if (this.#next) this.#next = this.#since = null;
    this.#dialect?.end(why);
    this.#dialect = null;
  }

  /** No more tries. */
  #end() {
    this.#connection.end("signed out");
    this.#ticket = null;
    this.#setState("closed");
  }

  /** What is known is not the present user's. @param {string} why */
  #forget(why) {
    this.#view = new View(this.#type);
    this.#since = this.#user = this.#ticket = null;
    this.#changes.drop(why);
    this.#setCounts(noCounts(), this.#version === 2);
    this.#listChanged();
  }

  // -- reading from the server -------------------------------------------------------------------------------------

  /**
   * Read the inbox anew, and only then show it. @param {number} [depth] so many at least; default: as far down as the
   * page sees it now, or if that was another inbox, as many
   */
  async #load(depth) {
    const { pageSize } = this.#options;
    const old = this.#view;
    // Revs of another inbox mean nothing here.
    const next = (this.#next = new View(this.#type, this.#state === "online" && !this.#isStale ? old : undefined));
    const wanted = Math.max(depth ?? old.items.size, pageSize);
    const isSame = depth === undefined && !this.#isStale;
    this.#isStale = false;
    // What came meanwhile must not push off the end what the page shows there.
    const isDownAt = (/** @type {Notification} */ last) => old.oldest === null || (!old.isComplete && byAge(last, old.oldest) >= 0);
    await this.#read(next, null, wanted, (last, count) => {
      return count >= MAX_RELOADED || (isSame ? count >= pageSize && isDownAt(last) : count >= wanted);
    });
    if (next !== this.#next) return;
    next.settle();
    this.#view = next;
    this.#next = null;
    this.#missed = next.list.filter((item) => !item.seen && !old.items.has(item._id) && !old.isBeyond(item)).length;
    this.#listChanged();
  }

  /** As `load`; without the inbox the connection is worth nothing. */
  async #reload() {
    const connection = this.#connection.current;
    try {
      await this.#load();
    } catch {
      if (connection === this.#connection.current) this.#connection.lost("the inbox could not be read");
    }
  }

  /**
   * Read in as many pages as it takes: so many, or if a fourth argument is given, until that says it is enough.
   * @param {View} view @param {Notification | null} before @param {number} count
   * @param {(last: Notification, count: number) => boolean} [isEnough] asked with the last one read, and how many
   */
  async #read(view, before, count, isEnough = (_, read) => read >= count) {
    const connection = this.#connection.current;
    const items = [];
    view.readers++;
    try {
      for (let more = true; more && !(items.length && isEnough(/** @type {Notification} */ (before), items.length)); ) {
        // A listener may have closed the connection when it was shown the page before.
        if (connection !== this.#connection.current) throw new Error("the connection was closed");
        if (view !== this.#view && view !== this.#next) break;
        const left = count > items.length ? count - items.length : this.#options.pageSize;
        const where = { before: before && before._id, limit: Math.min(left, MAX_PAGE_SIZE), ...(view.type !== null && { type: view.type }) };
        /** @type {import("./notifications/view.js").Page} */
        const page = await /** @type {Dialect1 | Dialect2} */ (this.#dialect).page(where, (part) => {
          view.extend(part);
          if (view === this.#view) this.#listChanged();
        });
        items.push(...page.items);
        before = page.items.at(-1) ?? before;
        more = page.more;
      }
    } finally {
      view.readers--;
    }
    return items;
  }

  /** Ask what has changed; who does not answer is dead. */
  async #sync() {
    const dialect = this.#dialect;
    if (!dialect || (dialect.version === 2 && this.#since === null)) return;
    try {
      await dialect.sync(this.#since ?? "");
    } catch (error) {
      // Else the connection was lost.
      if (error instanceof Refusal) setTimeout(() => dialect === this.#dialect && this.#sync(), Math.random() * SYNC_RETRY_MS);
    }
  }

  // -- what comes --------------------------------------------------------------------------------------------------

  /** Take what comes by itself: it makes what the page sees no longer than that was read, or may be. Returns as `View.take`. @param {Notification[]} items */
  #take(items) {
    this.#next?.take(items);
    // What is being read before the client is online takes the place of all that was seen before.
    if (this.#next && this.#state !== "online") return [];
    const { size } = this.#view.items;
    const unknown = this.#view.take(items);
    this.#view.trim(Math.max(size, MAX_RELOADED));
    return unknown;
  }

  /** @param {import("./notifications/dialect2.js").Joined} joined */
  #onJoined({ user, since, counts, floor, ticket, heartbeat_s: heartbeatS }) {
    this.#version = 2;
    this.#quietMs = SILENT_HEARTBEATS * 1000 * heartbeatS;
    if (this.#user !== null && user !== this.#user) {
      // The token is somebody else's now.
      this.#forget("another user signed in");
      this.#isStale = since === null;
    }
    this.#user = user;
    this.#ticket = ticket;
    if (since !== null) this.#since = since;
    this.#setCounts(counts);
    this.#view.dropBefore(floor);
  }

  /** @param {import("./notifications/dialect2.js").Chunk} chunk */
  #onChanged({ documents, upto, floor, reset, ticket }) {
    const fresh = this.#take(documents).filter(({ seen }) => !seen);
    this.#view.dropBefore(floor);
    this.#since = upto;
    this.#ticket = ticket ?? this.#ticket;
    this.#missed += fresh.length;
    this.#listChanged();
    if (this.#state === "online") for (const notification of fresh) this.#emit("notification", { notification });
    if (!reset) return;
    this.#isStale = true;
    if (this.#state === "online") this.#reload();
  }

  /** @param {string} name @param {any} data @param {boolean} [isAnswer] all screens were told of it, and of the ids too */
  #onTold(name, data, isAnswer = false) {
    if (name === "notification") this.#onNotifications([data], true);
    else if (name === "notifications") this.#onNotifications(data, true);
    else if (name === "unseen notifications") this.#onNotifications(data, false);
    else if (name === "restored") this.#onRestored(data);
    else if (name === "seen" || name === "unseen" || name === "delete") this.#onChange(name, data, isAnswer);
    else if (name === "counts") this.#setCounts(data);
    else if (name === "count") this.#setCounts({ ...this.#counts, ...data }, false);
    else if (name === "missed") this.#sync();
    else if (name === "delayed") this.#onDelayed(data);
    else if (name === "bye") this.#connection.heardBye(data.retry_ms);
  }

  /** The server keeps the sign-in in mind, and answers it when its store is back. @param {{ code: string, message: string }} why */
  #onDelayed({ code, message }) {
    if (this.#isDelayed) return;
    this.#isDelayed = true;
    this.#emit("error", { code, message });
  }

  /** @param {Notification[]} items @param {boolean} areNew else they are part of the answer to the join */
  #onNotifications(items, areNew) {
    this.#take(items);
    this.#listChanged();
    if (areNew) for (const notification of items) this.#emit("notification", { notification });
  }

  /** @param {Notification} item */
  #onRestored(item) {
    this.#take([item]);
    this.#listChanged();
    this.#emit("restore", { ids: [item._id] });
  }

  /** @param {"seen" | "unseen" | "delete"} name @param {{ ids: string[], rev: string | null, all?: true, upto: string }} change @param {boolean} isAnswer */
  #onChange(name, { ids, rev, all, upto }, isAnswer) {
    // What the answer to "all" says of those that come yet, the server tells by their ids.
    if (all && isAnswer) return;
    let changed = ids;
    for (const view of [this.#next, this.#view]) {
      if (!view) continue;
      if (all) changed = view.markAll(upto);
      else if (name === "delete") view.remove(ids, rev);
      else view.mark(ids, name === "seen", rev);
    }
    // None: a command of ours changed nothing.
    if (!changed.length) return;
    this.#listChanged();
    if (!isAnswer) this.#emit(name, { ids: changed });
  }

  // -- events ------------------------------------------------------------------------------------------------------

  /** @template {keyof Events} Name @param {Name} name @param {Events[Name]} detail */
  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  /** @param {State} state @param {number} [retryInMs] */
  #setState(state, retryInMs) {
    if (state === this.#state) return;
    this.#state = state;
    this.#emit("state", retryInMs === undefined ? { state } : { state, retryInMs });
  }

  /** @param {Counts} counts @param {boolean} [areByType] */
  #setCounts(counts, areByType = true) {
    const { unseen } = this.#counts;
    this.#counts = counts;
    if (areByType) this.#emit("counts", counts);
    if (counts.unseen !== unseen) this.#emit("count", { unseen: counts.unseen });
  }

  /** One event for all frames that come together. */
  #listChanged() {
    if (this.#isListStale) return;
    this.#isListStale = true;
    queueMicrotask(() => {
      this.#isListStale = false;
      this.#emit("list", { items: this.items, hasMore: this.hasMore });
    });
  }
}
