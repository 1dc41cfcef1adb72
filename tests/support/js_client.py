"""A client of static/example/notifications.js in a page that has nothing else: `inbox`, what it told in `events`."""

from __future__ import annotations

import time
from typing import Any

from playwright.async_api import Page

from tests.support.jwt_keys import claims, hs256
from tests.support.pages import Pages
from tests.support.running_server import RunningServer

CONNECT = """async ({ base, withSockJS, options }) => {
    const { Notifications } = await import(`${base}/client/notifications.js`);
    const { FakeSocket, SockJS } = window;
    const constructor = FakeSocket ?? (withSockJS ? SockJS : undefined);
    window.inbox = new Notifications({
        url: `${base}/notification`, login: "alice", password: "alice", SockJS: constructor,
        ...(window.fetchToken && { token: fetchToken }), ...options });
    window.events = [];
    const names = ["notification", "seen", "unseen", "delete", "restore", "count", "state", "reconnected", "error"];
    for (const name of names) {
        inbox.on(name, (detail) => events.push([name, detail]));
    }
    inbox.on("list", ({ items, hasMore }) => (window.list = { titles: items.map(({ title }) => title), hasMore }));
    inbox.connect();
}"""

# A socket whose other end is the test: `sockets.at(-1).frame("count", { unseen: 0 })`, `sockets[0].page([], false)`.
FAKE_SOCKET = """() => {
    window.sockets = [];
    window.FakeSocket = class {
        sent = [];
        constructor() { sockets.push(this); }
        send(text) { this.sent.push(JSON.parse(text)); }
        close() { this.isClosed = true; }
        frame(name, data, rest) {
            const inner = Array.isArray(data) ? JSON.stringify(data) : data;
            this.onmessage?.({ data: { name, data: inner, ...rest } });
        }
        // The answer to the last question, or to that about what is before `before`.
        page(data, more, before = this.sent.findLast(({ name }) => name === "content").data.before) {
            this.frame("notification", data, { before, more });
        }
        // Dialect 2: the answer to the last command of this name, and what comes unasked.
        answer(command, data, name = command) {
            const { id } = this.sent.findLast((sent) => sent.name === command);
            this.onmessage?.({ data: { name, id, data } });
        }
        push(name, data) { this.onmessage?.({ data: { name, data } }); }
        joined(rest) {
            const counts = { unseen: 0, total: 0, types: {} };
            const fields = { user: "alice", since: "s1", counts, floor: null, ticket: null, heartbeat_s: 25 };
            this.answer("join", { ...fields, more: false, ...rest }, "joined");
        }
        changed(command, documents, rest) {
            this.answer(command, { documents, more: false, upto: "s2", floor: null, reset: false, ...rest }, "sync");
        }
    };
    window.doc = (number, rest) => ({
        _id: String(number).padStart(24, "0"), title: `n${number}`, type: "", seen: true, rev: "0000000000000001",
        createdAt: new Date(Date.UTC(2030, 0, 1) + number * 1000).toISOString(), ...rest });
    window.docs = (from, to) => Array.from({ length: from - to + 1 }, (_, index) => doc(from - index));
}"""


async def connect(
    pages: Pages,
    server: RunningServer,
    *,
    sockjs: bool = False,
    base: str = "",
    page: Page | None = None,
    **options: Any,
) -> Page:
    """A page (None: one without anything of its own) in which a client is connecting as `inbox`."""
    page = page or await pages.bare(server.url)
    if sockjs:
        await page.add_script_tag(url=f"{server.url}/client/sockjs.min.js")
    await page.evaluate(CONNECT, {"base": base or server.url, "withSockJS": sockjs, "options": options})
    return page


async def online(pages: Pages, server: RunningServer, **options: Any) -> Page:
    page = await connect(pages, server, **options)
    await page.wait_for_function("inbox.state === 'online'")
    return page


async def scripted(pages: Pages, server: RunningServer, first: str = "") -> Page:
    """A page in which a client is connecting over a `FakeSocket`, and time is the test's. `first`: run before that."""
    page = await pages.bare(server.url)
    if first:
        await page.evaluate(first)
    await page.clock.install(time=0)
    await page.clock.pause_at(1000)
    await page.evaluate(FAKE_SOCKET)
    await page.evaluate("Math.random = () => 1")
    await page.evaluate(CONNECT, {"base": server.url, "withSockJS": False, "options": {"pageSize": 3}})
    return page


async def settle(page: Page, script: str) -> Any:
    """What `script` returns once all that it set off has run."""
    return await page.evaluate(f"async () => {{ {script}; for (let i = 0; i < 20; i++) await null; }}")


async def titles(page: Page) -> list[str]:
    found: list[str] = await page.evaluate("inbox.items.map(({ title }) => title)")
    return found


async def events(page: Page, name: str) -> list[Any]:
    found: list[Any] = await page.evaluate(
        "name => events.filter((event) => event[0] === name).map((event) => event[1])", name
    )
    return found


async def states(page: Page) -> list[str]:
    return [event["state"] for event in await events(page, "state")]


class Issuer:
    """The page's own backend, which signs tokens of alice. They live for `life_s`; None: it has none to give."""

    def __init__(self, life_s: float | None = 600) -> None:
        self.life_s = life_s
        self.asked = 0

    async def open(self, pages: Pages, server: RunningServer, *, sockjs: bool = False) -> Page:
        """A page in which a client is connecting that fetches its tokens here."""
        page = await pages.bare(server.url)
        await page.expose_function("fetchToken", self._sign)
        if sockjs:
            await page.add_script_tag(url=f"{server.url}/client/sockjs.min.js")
        await page.evaluate(CONNECT, {"base": server.url, "withSockJS": sockjs, "options": {}})
        return page

    def _sign(self) -> str:
        self.asked += 1
        if self.life_s is None:
            raise RuntimeError("nobody is signed in here")
        return hs256(claims(exp=time.time() + self.life_s))
