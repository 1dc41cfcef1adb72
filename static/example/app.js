/**
 * The example page: signing in, the bell, the inbox, the state of the connection. The form is in send.js, the mails are
 * in mailbox.js, the choice of a type in filters.js. `?as=alice` signs a demo user in at once; `?transport=xhr-streaming` lets SockJS use that one only.
 */

import { Notifications } from "/client/notifications.js";
import { announce, byId, isUsable, make, setShown, setUsable } from "./dom.js";
import { Filters } from "./filters.js";
import { InboxList } from "./inbox.js";
import { Mailbox } from "./mailbox.js";
import { SendForm } from "./send.js";
import { Toast } from "./toast.js";

const parameters = new URLSearchParams(location.search);
const mailbox = new Mailbox();
const sendForm = new SendForm({ sent: () => mailbox.refreshSoon() });
const toast = new Toast();
const filters = new Filters({ choose: (type) => choose(type === inbox?.type ? null : type) });
const list = new InboxList({
  seen: (id) => command("seen", id),
  delete: (id) => command("delete", id),
  undo: () => told.then(() => toast.undo()),
});

/** @type {Notifications | null} the signed-in user's */
let inbox = null;
/** @type {{ id: string, email: string }[]} */
let demoUsers = [];
/** @type {ReturnType<typeof setInterval> | undefined} */
let countdown;
/** Until all that was asked for is answered: who undoes means the last of it. @type {Promise<void>} */
let told = Promise.resolve();

// -- signing in and out -----------------------------------------------------------------------------------------------

/** @param {string} login @param {string} password */
function signIn(login, password) {
  inbox?.close();
  setSigningIn(true);
  const transport = parameters.get("transport");
  const client = new Notifications({
    login, password,
    SockJS: /** @type {any} */ (window).SockJS,
    transports: transport ? [transport] : undefined,
  });
  inbox = client;
  client.on("state", (event) => showState(event, login));
  client.on("list", showList);
  client.on("count", showCount);
  client.on("counts", (counts) => filters.show(counts, client.type));
  client.on("reconnected", ({ missed }) => (missed ? toast.say(`Reconnected, ${missed} new`) : announce("Connected again.")));
  client.on("notification", ({ notification }) => welcome(notification));
  client.on("error", ({ code, message }) => showError(code, message));
  client.connect();
}

function signOut() {
  inbox?.close();
  inbox = null;
  mailbox.stop();
  toast.clear();
  history.replaceState(null, "", address(null));
  byId("app").hidden = true;
  byId("signin").hidden = false;
  document.title = "Notifications";
  byId("login").focus();
}

/** @param {string} login */
function enter(login) {
  setSigningIn(false);
  if (!byId("app").hidden) return;
  const isDemo = demoUsers.some(({ id }) => id === login);
  history.replaceState(null, "", address(isDemo ? login : null));
  const isByHand = !byId("signin").hidden;
  byId("signin").hidden = true;
  byId("app").hidden = false;
  if (isByHand) byId("inbox").focus();
  byId("who").textContent = login;
  byId("avatar").textContent = login[0].toUpperCase();
  byId("avatar").dataset.hue = hue(login);
  const other = demoUsers.find(({ id }) => id !== login);
  const second = byId("second-window");
  second.hidden = !other;
  if (other) {
    second.setAttribute("href", address(other.id));
    /** @type {HTMLElement} */ (second.querySelector("span")).textContent = `Second window: ${other.id}`;
  }
  sendForm.showRecipients(demoUsers, login);
  mailbox.start();
  showCount({ unseen: inbox?.unseen ?? 0 });
}

/** This page's address for a demo user, or for signing in. @param {string | null} user */
function address(user) {
  const search = new URLSearchParams(parameters);
  search.delete("as");
  if (user) search.set("as", user);
  return search.size ? `/?${search}` : "/";
}

/** @param {boolean} isBusy */
function setSigningIn(isBusy) {
  setUsable("signin-button", !isBusy);
  byId("signin-button").textContent = isBusy ? "Signing in…" : "Sign in";
  if (isBusy) byId("signin-error").textContent = "";
}

/** Who comes by an address with a name in it sees the form only then. @param {string} text */
function sayAtSignIn(text) {
  byId("signin").hidden = false;
  byId("signin-error").textContent = text;
}

/** @param {string} code @param {string} message */
function showError(code, message) {
  if (inbox?.state !== "closed") {
    if (byId("app").hidden) sayAtSignIn(sentence(message));
    else toast.say(sentence(message));
    return;
  }
  if (!byId("app").hidden) signOut();
  setSigningIn(false);
  sayAtSignIn(code === "bad_credentials" ? "The name or the password is wrong." : sentence(message));
  byId("password").focus();
}

/** @param {string} text */
const sentence = (text) => text[0].toUpperCase() + text.slice(1) + ".";

// -- the connection ---------------------------------------------------------------------------------------------------

/** @param {import("./notifications.js").Events["state"]} event @param {string} login */
function showState({ state, retryInMs }, login) {
  const before = byId("state").dataset.state;
  byId("state").dataset.state = state;
  setShown("retry", state === "waiting");
  clearInterval(countdown);
  if (state === "online") {
    byId("state-text").textContent = "Live";
    enter(login);
  } else if (state === "waiting") {
    if (before !== "waiting" && before !== "connecting") announce("The connection is lost. Trying again.");
    if (byId("app").hidden) sayAtSignIn("The server does not answer. Trying again.");
    showCountdown(performance.now() + (retryInMs ?? 0));
  } else byId("state-text").textContent = "Connecting";
  setEnabled();
}

/** @param {number} end as of `performance.now()` */
function showCountdown(end) {
  const show = () => {
    const seconds = Math.max(1, Math.ceil((end - performance.now()) / 1000));
    byId("state-text").replaceChildren("Offline, ", make("span", { class: "state-more" }, "next try in "), `${seconds} s`);
  };
  show();
  countdown = setInterval(show, 500);
}

function setEnabled() {
  const isOnline = inbox?.state === "online";
  setUsable("see-all", isOnline && inbox?.unseen !== 0);
  setUsable("more", isOnline);
  filters.setUsable(isOnline);
}

// -- the inbox --------------------------------------------------------------------------------------------------------

/** @param {import("./notifications.js").Events["list"]} event */
function showList({ items, hasMore }) {
  list.show(items);
  setShown("more", hasMore);
  byId("empty").hidden = items.length > 0 || inbox?.state !== "online";
  const areAll = !inbox || inbox.type === null;
  byId("empty-title").textContent = areAll ? "All quiet." : "Nothing of this type.";
  byId("see-all-text").textContent = areAll ? "Mark all as seen" : "Mark listed as seen";
  byId("keys").hidden = items.length === 0;
}

/** @param {{ unseen: number }} event */
function showCount({ unseen }) {
  const shown = unseen > 99 ? "99+" : String(unseen);
  byId("badge").textContent = shown;
  byId("badge").hidden = unseen === 0;
  byId("bell-button").setAttribute("aria-label", unseen ? `Notifications, ${unseen} unseen` : "Notifications, none unseen");
  byId("inbox-count").textContent = unseen ? `${unseen} unseen` : "";
  document.title = unseen ? `(${shown}) Notifications` : "Notifications";
  setEnabled();
}

/** One has just come. @param {import("./notifications.js").Notification} notification */
function welcome(notification) {
  announce(`New notification: ${[notification.title, notification.content].filter(Boolean).join(". ") || "no text"}`);
  // After the list has been drawn, which happens once for all that come together.
  queueMicrotask(() => list.highlight(notification._id));
  // It rings to its end: to start anew takes a layout of the whole page, for each one of very many.
  byId("bell-button").classList.add("ringing");
}

/** @param {"seen" | "delete"} name @param {string} id */
function command(name, id) {
  if (!inbox) return;
  if (inbox.state !== "online") toast.say("Not connected: this will be done as soon as the connection is back.");
  told = tell(name === "seen" ? "Marked as seen" : "Deleted", name, inbox[name]([id]));
}

function seeAll() {
  if (!inbox || !isUsable("see-all")) return;
  if (inbox.type === null) told = tell("Marked as seen", "seen", inbox.seenAll());
  else told = tell("Marked as seen", "seen", inbox.seen(inbox.items.filter(({ seen }) => !seen).map(({ _id }) => _id)));
}

/**
 * Say what has been done, and offer to undo it. @param {string} text @param {"seen" | "delete"} name
 * @param {Promise<import("./notifications.js").Changed> | false} changing
 */
async function tell(text, name, changing) {
  const client = inbox;
  try {
    const { ids, count } = (await changing) || { ids: [], count: 0 };
    if (!count || client !== inbox) return;
    const many = count > 1 ? `: ${count}` : "";
    // An old server can undo nothing, and of those that are not listed nobody knows which they were.
    if (client?.dialect !== 2 || !ids.length) toast.say(text + many);
    else toast.say(text + many, () => takeBack(name, ids), ids.length < count ? `Undo for the ${ids.length} listed` : "Undo");
  } catch {
    // The event "error" says why.
  }
}

/** @param {"seen" | "delete"} name @param {string[]} ids */
async function takeBack(name, ids) {
  await (name === "seen" ? inbox?.markUnseen(ids) : inbox?.restore(ids));
  announce(name === "seen" ? "Unseen again." : "Restored.");
  queueMicrotask(() => list.focusOn(ids[0]));
}

/** Show those of one type only. @param {string | null} type null: all */
async function choose(type) {
  const client = inbox;
  try {
    const chosen = client?.filter(type);
    if (client) filters.show(client.counts, client.type);
    await chosen;
  } catch {
    announce("They could not be read.");
  }
  if (client && client === inbox) filters.show(client.counts, client.type);
}

async function showOlder() {
  if (!isUsable("more")) return;
  setUsable("more", false);
  try {
    const page = await inbox?.content();
    // To where they begin, or else to the end; unless the user has gone elsewhere meanwhile.
    const isWaiting = [byId("more"), byId("inbox")].includes(document.activeElement);
    if (isWaiting) list.focusOn((page?.[0] ?? inbox?.items.at(-1))?._id);
    announce(page?.length ? `${page.length} older notifications.` : "There are no older notifications.");
  } catch {
    announce("Older notifications could not be read.");
  } finally {
    setEnabled();
  }
}

// -- start ------------------------------------------------------------------------------------------------------------

/** One of a few colours, the same each time for a name. @param {string} name */
function hue(name) {
  return String([...name].reduce((sum, letter) => sum + letter.charCodeAt(0), 0) % 6);
}

function showDemoUsers() {
  byId("demo-users").replaceChildren(...demoUsers.map(({ id }) => {
    const button = make("button", { class: "demo-user", type: "button" },
      make("span", { class: "avatar", "aria-hidden": "true", "data-hue": hue(id) }, id[0].toUpperCase()),
      make("span", {}, make("span", { class: "visually-hidden" }, "Sign in as "), id));
    button.addEventListener("click", () => signIn(id, id));
    return make("li", {}, button);
  }));
}

async function start() {
  try {
    const answer = await fetch("/demo/users");
    if (answer.ok) demoUsers = (await answer.json()).users;
  } catch {
    sayAtSignIn("The server does not answer.");
  }
  showDemoUsers();
  const wanted = demoUsers.find(({ id }) => id === parameters.get("as"));
  if (wanted) signIn(wanted.id, wanted.id);
  else byId("signin").hidden = false;
}

byId("signin-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (isUsable("signin-button")) signIn(byId("login").value, byId("password").value);
});
byId("signout").addEventListener("click", signOut);
byId("retry").addEventListener("click", () => inbox?.connect());
byId("bell-button").addEventListener("click", () => list.focus());
byId("bell-button").addEventListener("animationend", () => byId("bell-button").classList.remove("ringing"));
byId("see-all").addEventListener("click", seeAll);
byId("more").addEventListener("click", showOlder);
await start();
