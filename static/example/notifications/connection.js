/**
 * One connection at a time, and when the next one is tried: after growing random delays, or when the server said. Knows
 * frames as JSON, not what they mean.
 */

const FIRST_RETRY_MS = 1_000;
const MAX_RETRY_MS = 30_000;
/** A connection that lived this long was a good one: the delays start anew. */
const STABLE_MS = 10_000;
/** Silence for this long, while something is awaited, means that the connection is dead. */
const ANSWER_TIMEOUT_MS = 20_000;
/** After this long in the background, by the clock on the wall, the connection is in doubt: machines sleep. */
const DOUBTFUL_AFTER_MS = 60_000;

/**
 * @typedef {object} Handlers What its owner does.
 * @property {() => void} opening a new one is tried
 * @property {() => void} opened
 * @property {(frame: any) => void} received
 * @property {(code: number, reason: string) => void} closed by the server, or it could not be opened: call `lost` or `end`
 * @property {(why: string) => void} gone of what was asked nothing will be answered
 * @property {(retryInMs: number) => void} waiting for the next try
 * @property {() => void} silent nothing has come for that long: ask whether anybody is there
 * @property {() => void} doubtful it may be dead, and something may have been missed: ask what
 * @property {() => number | null} silentFor after how much silence to ask, in ms; 0: an answer is awaited; null: never
 */

export class Connection {
  /** @type {any} */ #socket = null;
  #isStarted = false;
  #isWaiting = false;
  #failures = 0;
  /** @type {number | null} */ #settledAt = null;
  /** What the server said when it took its leave. @type {number | null} */ #byeMs = null;
  #hiddenSince = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #retryTimer;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #silenceTimer;

  /** @param {{ url: string, SockJS?: any, transports?: string[] }} options @param {Handlers} handlers */
  constructor(options, handlers) {
    this.options = options;
    this.handlers = handlers;
  }

  /** Which one it is: another after each break, null if there is none. @returns {unknown} */
  get current() {
    return this.#socket;
  }

  /** Connect, and stay so until `end`. While waiting for the next try: try now. */
  start() {
    if (this.#isStarted) return this.#wake(false);
    this.#isStarted = true;
    globalThis.addEventListener?.("online", this.#onOnline);
    globalThis.document?.addEventListener("visibilitychange", this.#onVisibility);
    this.#open();
  }

  /** @param {object} frame */
  send(frame) {
    this.#socket.send(JSON.stringify(frame));
    this.watch();
  }

  /** It does what it is for: from now on it counts as a good one, if it lasts. */
  settled() {
    this.#settledAt = performance.now();
    this.watch();
  }

  /** The server ends: do not come back before this time. @param {number} retryMs */
  heardBye(retryMs) {
    this.#byeMs = retryMs;
  }

  /** Drop it and try again at once. @param {string} why */
  renew(why) {
    this.#disconnect(why);
    this.#open();
  }

  /** Drop it and try again later. @param {string} why @param {number} [leastMs] not before this time */
  lost(why, leastMs = 0) {
    if (this.#settledAt !== null && performance.now() - this.#settledAt > STABLE_MS) this.#failures = 0;
    const byeMs = this.#byeMs;
    this.#disconnect(why);
    // Full jitter: the clients of a server that crashed do not all come back at once.
    const random = () => Math.random() * Math.min(MAX_RETRY_MS, FIRST_RETRY_MS * 2 ** this.#failures++);
    const retryInMs = byeMs ?? leastMs + random();
    this.#isWaiting = true;
    this.#retryTimer = setTimeout(() => this.#open(), retryInMs);
    this.handlers.waiting(retryInMs);
  }

  /** No more tries. @param {string} why */
  end(why) {
    this.#isStarted = this.#isWaiting = false;
    clearTimeout(this.#retryTimer);
    globalThis.removeEventListener?.("online", this.#onOnline);
    globalThis.document?.removeEventListener("visibilitychange", this.#onVisibility);
    this.#disconnect(why);
    this.#failures = 0;
  }

  /** Notice silence from now on. */
  watch() {
    clearTimeout(this.#silenceTimer);
    if (!this.#socket) return;
    const silentForMs = this.handlers.silentFor();
    if (silentForMs === 0) this.#silenceTimer = setTimeout(() => this.lost("no answer"), ANSWER_TIMEOUT_MS);
    else if (silentForMs !== null) this.#silenceTimer = setTimeout(() => this.handlers.silent(), silentForMs);
  }

  #open() {
    clearTimeout(this.#retryTimer);
    this.#isWaiting = false;
    this.#settledAt = this.#byeMs = null;
    const { url, SockJS, transports } = this.options;
    const socket = SockJS ? new SockJS(url, null, transports && { transports }) : new WebSocket(webSocketUrl(url));
    socket.onopen = () => this.handlers.opened();
    socket.onmessage = (/** @type {MessageEvent} */ { data }) => this.#receive(data);
    socket.onclose = (/** @type {CloseEvent} */ { code, reason }) => this.handlers.closed(code, reason);
    // SockJS tells of those; of a WebSocket's pings no page ever hears.
    socket.onheartbeat = () => this.handlers.silentFor() && this.watch();
    this.#socket = socket;
    // Only now: who hears of it may end it.
    this.handlers.opening();
    this.watch();
  }

  /** @param {unknown} message a frame as text, or as SockJS has parsed it */
  #receive(message) {
    this.handlers.received(typeof message === "string" ? JSON.parse(message) : message);
    this.watch();
  }

  /** @param {string} why */
  #disconnect(why) {
    clearTimeout(this.#silenceTimer);
    const socket = this.#socket;
    this.#socket = null;
    this.handlers.gone(why);
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = socket.onheartbeat = null;
    socket.close();
  }

  /** Do not wait any longer. @param {boolean} isInDoubt what is open may be dead, and not say so */
  #wake(isInDoubt) {
    if (this.#isWaiting) this.#open();
    else if (isInDoubt && this.#socket) this.handlers.doubtful();
  }

  // The network was away, or it is another one now.
  #onOnline = () => this.#wake(true);

  #onVisibility = () => {
    // Not `performance.now()`, which may stand still while the machine sleeps.
    if (document.hidden) this.#hiddenSince = Date.now();
    else this.#wake(Date.now() - this.#hiddenSince > DOUBTFUL_AFTER_MS);
  };
}

/** @param {string} url may be relative to the page, and may end with a slash, as for SockJS */
function webSocketUrl(url) {
  const absolute = new URL(`${url.replace(/\/$/, "")}/websocket`, globalThis.location?.href);
  absolute.protocol = absolute.protocol.replace("http", "ws");
  return absolute.href;
}
