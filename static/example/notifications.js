/**
 * The client of the notification server: one signed-in user's inbox, kept equal to the server's over a live connection.
 *
 *     import { Notifications } from "/client/notifications.js";
 *
 *     const inbox = new Notifications({ url: "/notification", login: "alice", password: "alice" });
 *     inbox.on("list", ({ items }) => render(items));                              // newest first
 *     inbox.on("count", ({ unseen }) => (badge.textContent = unseen));
 *     inbox.on("notification", ({ notification }) => toast(notification.title));   // pushed just now
 *     inbox.on("error", ({ code, message }) => console.warn(code, message));
 *     inbox.connect();
 *     // and then: inbox.seen([id]); inbox.seenAll(); inbox.delete([id]); await inbox.content(); inbox.close();
 *
 * Instead of login and password it takes a `token`, or a function that fetches one: `token: () => fetchToken()`. The
 * function is asked at each sign-in, so also when the server says that the last token has ended.
 *
 * It connects again by itself, after growing random delays, whatever ended the connection but `close()`, a refused
 * sign-in and being signed out; then it joins again and reads again what it held, so that `items` ends equal to the inbox. It speaks over a
 * plain WebSocket; given the constructor of sockjs-client, over whichever transport of that library gets through.
 *
 * The texts of a notification come from elsewhere: set them as `textContent`, never as HTML, and let only addresses
 * that you have checked become links.
 */

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
 * @property {string} rev opaque; of two versions of one notification the later has the greater string
 *
 * @typedef {"closed" | "connecting" | "online" | "waiting"} State
 *   `connecting`: not yet signed in and up to date; `online`: live; `waiting` for the next try; `closed`: no more tries
 *
 * @typedef {object} Events The events and their data (`event.detail` for those who use `addEventListener`).
 * @property {{ items: Notification[], hasMore: boolean }} list `items` or `hasMore` changed
 * @property {{ notification: Notification }} notification one was pushed just now
 * @property {{ ids: string[] }} seen marked as seen, on this screen or another
 * @property {{ ids: string[] }} delete deleted, on this screen or another
 * @property {{ unseen: number }} count of the whole inbox
 * @property {{ state: State, retryInMs?: number }} state `retryInMs` comes with `waiting`
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
 *
 * @typedef {object} View The inbox from the newest down to `oldest`, the end of what was read.
 * @property {Map<string, Notification>} items by `_id`
 * @property {Notification | null} oldest null before anything was read
 * @property {boolean} isComplete there is nothing older
 *
 * @typedef {object} Page An answer of the server: newest first; fewer than asked for if they are long.
 * @property {Notification[]} items
 * @property {boolean} more older ones follow
 *
 * @typedef {object} Question A page asked for and not yet answered.
 * @property {string | null} before the `_id` it was asked with
 * @property {(page: Page) => void} resolve
 * @property {(error: Error) => void} reject
 */

const FIRST_RETRY_MS = 1_000;
const MAX_RETRY_MS = 30_000;
/** A connection that lived this long was a good one: the delays start anew. */
const STABLE_MS = 10_000;
/** Silence for this long, while something is awaited, means that the connection is dead. */
const ANSWER_TIMEOUT_MS = 20_000;
/** After this long in the background the connection is in doubt: machines sleep. */
const DOUBTFUL_AFTER_MS = 60_000;
const MAX_PAGE_SIZE = 100;
/** So many are read again after a break, at most; the others by paging. */
const MAX_RELOADED = 500;
/** How the server closes a connection whose token has ended: a new one is all it takes. */
const TOKEN_EXPIRED = 3005;
/** From this close code on, coming back is useless until something has changed. */
const FIRST_FINAL_CODE = 3500;
/** Errors that answer a sign-in which may do better later. */
const PASSING_ERRORS = ["busy", "rate_limited", "auth_unavailable", "too_many_connections"];

/** @type {(a: string, b: string) => number} */
const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
/** Newest first. @type {(a: Notification, b: Notification) => number} */
const byAge = (a, b) => compare(b.createdAt, a.createdAt) || compare(b._id, a._id);
/** @type {() => View} */
const emptyView = () => ({ items: new Map(), oldest: null, isComplete: false });
/** @type {(view: View, item: Notification) => boolean} */
const isBeyond = (view, item) => !view.isComplete && view.oldest !== null && byAge(item, view.oldest) > 0;

export class Notifications extends EventTarget {
  /** @type {Options & { url: string, pageSize: number }} */ #options;
  /** @type {State} */ #state = "closed";
  /** @type {any} */ #socket = null;
  /** What the page sees. */ #view = emptyView();
  /** What is being read on a new connection, and then seen. @type {View | null} */ #next = null;
  #unseen = 0;
  /** The sign-in is answered: all unseen notifications and their count have come. */ #isJoined = false;
  /** @type {Question[]} */ #questions = [];
  /** Commands given while there is no connection. @type {["seen" | "delete", string[]][]} */ #postponed = [];
  #failures = 0;
  #onlineSince = 0;
  #hiddenSince = 0;
  #isListStale = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #retryTimer;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #answerTimer;

  /** @param {Options} options */
  constructor(options) {
    super();
    this.#options = { ...options, url: options.url ?? "/notification", pageSize: options.pageSize ?? 30 };
  }

  /** The inbox from the newest down to where it was read. */
  get items() {
    return [...this.#view.items.values()].sort(byAge);
  }

  /** Whether there may be older ones for `content()`. */
  get hasMore() {
    return this.#view.oldest !== null && !this.#view.isComplete;
  }

  /** How many of the whole inbox are unseen. */
  get unseen() {
    return this.#unseen;
  }

  get state() {
    return this.#state;
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
    if (this.#state === "closed") {
      window.addEventListener("online", this.#retryNow);
      document.addEventListener("visibilitychange", this.#onVisibility);
      this.#open();
    } else this.#retryNow();
  }

  /** Sign out and forget the inbox. */
  close() {
    this.#end();
    this.#view = emptyView();
    this.#postponed = [];
    this.#setUnseen(0);
    this.#listChanged();
  }

  /**
   * Read a page; it joins `items`. `before`: the `_id` of one of `items`, null for the newest page; default: the next
   * older page. Returns at most `limit`, newest first; fewer: the inbox ends there. Rejects when the
   * connection breaks or the server cannot answer.
   * @param {{ before?: string | null, limit?: number }} [page]
   */
  async content({ before, limit = this.#options.pageSize } = {}) {
    if (this.#state !== "online") throw new Error("not connected");
    const start = before ? this.#view.items.get(before) : before === null ? null : this.#view.oldest;
    if (start === undefined) throw new Error(`${before} is not one of the items`);
    return this.#read(start, limit);
  }

  /** Mark as seen, on all screens of the user; without a connection: as soon as it is back. @param {string[]} ids */
  seen(ids) {
    this.#command("seen", ids);
  }

  /** Mark all as seen, also those not in `items`. Does nothing and returns false while not online. */
  seenAll() {
    if (this.#state !== "online") return false;
    this.#send("seen", { all: true });
    return true;
  }

  /** Delete, on all screens of the user; without a connection: as soon as it is back. @param {string[]} ids */
  delete(ids) {
    this.#command("delete", ids);
  }

  // -- the connection ----------------------------------------------------------------------------------------------

  #open() {
    clearTimeout(this.#retryTimer);
    const { url, SockJS, transports } = this.#options;
    this.#next = emptyView();
    this.#isJoined = false;
    this.#setState("connecting");
    const socket = SockJS ? new SockJS(url, null, transports && { transports }) : new WebSocket(webSocketUrl(url));
    socket.onopen = () => this.#join();
    socket.onmessage = (/** @type {MessageEvent} */ { data }) => this.#receive(data);
    socket.onclose = (/** @type {CloseEvent} */ { code, reason }) => this.#onClose(code, reason);
    this.#socket = socket;
    this.#watch();
  }

  async #join() {
    const { login, password, token } = this.#options;
    const socket = this.#socket;
    try {
      const proof = token === undefined ? { login, password } : { token: typeof token === "function" ? await token() : token };
      if (socket !== this.#socket) return;
      this.#send("join", proof);
      // Does not wait for the join's answer: that saves a round trip.
      await this.#load();
    } catch {
      // The page's own function had no token, or the inbox could not be read.
      if (socket === this.#socket) this.#lost("could not sign in");
    }
  }

  /** Read the inbox anew, as far down as the page sees it now, and only then show it. */
  async #load() {
    const { pageSize } = this.#options;
    const next = /** @type {View} */ (this.#next);
    const { items, oldest, isComplete } = this.#view;
    await this.#read(null, Math.max(items.size, pageSize), (last, count) => {
      // What came meanwhile must not push off the end what the page shows there.
      const isDown = oldest === null || (!isComplete && byAge(last, oldest) >= 0);
      return count >= MAX_RELOADED || (count >= pageSize && isDown);
    });
    if (next !== this.#next) return;
    // The join told of all that is unseen; what lies further down comes again by paging, then without gaps.
    for (const [id, item] of next.items) if (isBeyond(next, item)) next.items.delete(id);
    this.#view = next;
    this.#next = null;
    this.#onlineSince = performance.now();
    this.#setState("online");
    this.#watch();
    this.#listChanged();
    for (const [name, ids] of this.#postponed.splice(0)) this.#send(name, { ids });
  }

  /** @param {number} code @param {string} reason */
  #onClose(code, reason) {
    if (code >= FIRST_FINAL_CODE && code < 4000) {
      this.#end();
      this.#emit("error", { code: reason, message: reason === "signed_out" ? "you were signed out" : "access has ended" });
    } else if (code === TOKEN_EXPIRED && this.#state === "online") {
      this.#disconnect("the token has ended");
      this.#open();
    } else this.#lost("the connection was closed");
  }

  /** Try again later. @param {string} why */
  #lost(why) {
    if (this.#state === "online" && performance.now() - this.#onlineSince > STABLE_MS) this.#failures = 0;
    this.#disconnect(why);
    // Full jitter: the clients of a server that restarts do not all come back at once.
    const retryInMs = Math.random() * Math.min(MAX_RETRY_MS, FIRST_RETRY_MS * 2 ** this.#failures++);
    this.#retryTimer = setTimeout(() => this.#open(), retryInMs);
    this.#setState("waiting", retryInMs);
  }

  /** No more tries. */
  #end() {
    clearTimeout(this.#retryTimer);
    window.removeEventListener("online", this.#retryNow);
    document.removeEventListener("visibilitychange", this.#onVisibility);
    this.#disconnect("signed out");
    this.#failures = 0;
    this.#setState("closed");
  }

  /** @param {string} why */
  #disconnect(why) {
    clearTimeout(this.#answerTimer);
    const socket = this.#socket;
    this.#socket = this.#next = null;
    for (const { reject } of this.#questions.splice(0)) reject(new Error(why));
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }

  #retryNow = () => {
    if (this.#state === "waiting") this.#open();
  };

  #onVisibility = () => {
    if (document.hidden) {
      this.#hiddenSince = performance.now();
      return;
    }
    this.#retryNow();
    const isDoubtful = performance.now() - this.#hiddenSince > DOUBTFUL_AFTER_MS;
    // A dead connection is found out by its not answering.
    if (isDoubtful && this.#state === "online") this.#ask(null, 1).catch(() => {});
  };

  #watch() {
    clearTimeout(this.#answerTimer);
    if (this.#state === "online" && !this.#questions.length) return;
    this.#answerTimer = setTimeout(() => this.#lost("no answer"), ANSWER_TIMEOUT_MS);
  }

  // -- what is sent ------------------------------------------------------------------------------------------------

  /** @param {string} name @param {object} data */
  #send(name, data) {
    this.#socket.send(JSON.stringify({ name, data }));
  }

  /** @param {"seen" | "delete"} name @param {string[]} ids */
  #command(name, ids) {
    if (this.#state === "online") this.#send(name, { ids });
    else this.#postponed.push([name, ids]);
  }

  /**
   * Read in as many pages as it takes: so many, or if a third argument is given, until that says it is enough.
   * @param {Notification | null} before @param {number} count
   * @param {(last: Notification, count: number) => boolean} [isEnough] asked with the last one read, and how many
   */
  async #read(before, count, isEnough = (_, read) => read >= count) {
    const socket = this.#socket;
    const items = [];
    for (let more = true; more && !(items.length && isEnough(/** @type {Notification} */ (before), items.length)); ) {
      // A listener may have closed the connection when it was shown the page before.
      if (socket !== this.#socket) throw new Error("the connection was closed");
      const left = count > items.length ? count - items.length : this.#options.pageSize;
      const page = await this.#ask(before && before._id, Math.min(left, MAX_PAGE_SIZE));
      items.push(...page.items);
      before = page.items.at(-1) ?? before;
      more = page.more;
    }
    return items;
  }

  /** @param {string | null} before @param {number} limit @returns {Promise<Page>} */
  #ask(before, limit) {
    return new Promise((resolve, reject) => {
      this.#questions.push({ before, resolve, reject });
      this.#send("content", { before, limit });
      this.#watch();
    });
  }

  // -- what comes --------------------------------------------------------------------------------------------------

  /** @param {unknown} message a frame as text, or as SockJS has parsed it */
  #receive(message) {
    const frame = typeof message === "string" ? JSON.parse(message) : /** @type {any} */ (message);
    const { name, data, before, more } = frame;
    const value = typeof data === "string" ? JSON.parse(data) : data;
    if (name === "notification" && "before" in frame) this.#onPage({ items: value, more }, before);
    else if (name === "notification") this.#onNotifications(value);
    else if (name === "seen") this.#onSeen(value);
    else if (name === "delete") this.#onDelete(value);
    else if (name === "count") this.#onCount(value);
    else if (name === "error") this.#onError(value);
    if (this.#socket) this.#watch();
  }

  /** @param {Page} page @param {string | null} before that of the question it answers */
  #onPage(page, before) {
    extend(this.#next ?? this.#view, page);
    this.#put(page.items);
    const index = this.#questions.findIndex((question) => question.before === before);
    // None: an error, which does not say what it answers, was taken for the answer.
    if (index >= 0) this.#questions.splice(index, 1)[0].resolve(page);
  }

  /** @param {Notification[]} items part of the answer to the join, or pushed */
  #onNotifications(items) {
    this.#put(items);
    if (this.#isJoined) for (const notification of items) this.#emit("notification", { notification });
  }

  /** @param {Notification[]} items */
  #put(items) {
    const view = this.#next ?? this.#view;
    for (const item of items) {
      const known = view.items.get(item._id);
      if (!isBeyond(view, item) && !(known && known.rev > item.rev)) view.items.set(item._id, item);
    }
    this.#listChanged();
  }

  /** @param {string[]} ids */
  #onSeen(ids) {
    for (const view of [this.#view, this.#next]) {
      for (const id of ids) {
        const item = view?.items.get(id);
        if (item) view?.items.set(id, { ...item, seen: true });
      }
    }
    this.#changed("seen", ids);
  }

  /** @param {string[]} ids */
  #onDelete(ids) {
    for (const view of [this.#view, this.#next]) for (const id of ids) view?.items.delete(id);
    this.#changed("delete", ids);
  }

  /** @param {"seen" | "delete"} name @param {string[]} ids none: a command of ours changed nothing */
  #changed(name, ids) {
    if (!ids.length) return;
    this.#listChanged();
    this.#emit(name, { ids });
  }

  /** @param {Events["count"]} count the first one on a connection ends the answer to the join */
  #onCount({ unseen }) {
    this.#isJoined = true;
    this.#setUnseen(unseen);
  }

  /** @param {Events["error"]} error */
  #onError(error) {
    if (this.#isJoined) this.#questions.shift()?.reject(new Error(error.message));
    else if (PASSING_ERRORS.includes(error.code) || (error.code === "token_expired" && typeof this.#options.token === "function"))
      this.#lost(error.message);
    // Without its store the server keeps the join in mind, and answers it later.
    else if (error.code !== "store_unavailable") this.#end();
    this.#emit("error", error);
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

  /** @param {number} unseen */
  #setUnseen(unseen) {
    if (unseen === this.#unseen) return;
    this.#unseen = unseen;
    this.#emit("count", { unseen });
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

/** Let a view reach down to the end of a page that begins in it. @param {View} view @param {Page} page */
function extend(view, { items, more }) {
  const last = items.at(-1);
  if (more && last && view.oldest && byAge(last, view.oldest) <= 0) return;
  view.isComplete = !more;
  view.oldest = last ?? view.oldest;
}

/** @param {string} url may be relative to the page */
function webSocketUrl(url) {
  const absolute = new URL(`${url}/websocket`, location.href);
  absolute.protocol = absolute.protocol.replace("http", "ws");
  return absolute.href;
}
