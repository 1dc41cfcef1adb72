"""static/example/notifications.js in dialect 2, in a real browser: whatever happened, its list ends equal to the inbox.

What a server cannot be made to send is sent by a scripted socket, and what an old server said by `ClassicServer`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, WebSocket

from tests.support.classic_server import ClassicServer
from tests.support.js_client import Issuer, connect, events, online, scripted, settle, states, titles
from tests.support.jwt_keys import SECRET
from tests.support.pages import Pages
from tests.support.running_server import RunningServer

ONLINE = "inbox.state === 'online'"
STAY_AWAY = "Math.random = () => 1e6"
"""It will not come back before it is told to."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with RunningServer(tmp_path) as server:
        yield server


@pytest.fixture
async def pages(browser: Browser) -> AsyncIterator[Pages]:
    async with Pages(browser) as pages:
        pages.forgive("WebSocket connection")
        pages.forgive("ERR_CONNECTION")
        pages.forgive("ERR_INCOMPLETE_CHUNKED_ENCODING")
        pages.forgive("503")  # while a server starts
        yield pages


class Spy:
    """What the clients of a page send and receive from now on, over WebSockets."""

    def __init__(self, page: Page) -> None:
        self.sent: list[dict[str, Any]] = []
        self.received: list[dict[str, Any]] = []
        page.on("websocket", self._listen)

    def _listen(self, socket: WebSocket) -> None:
        socket.on("framesent", lambda text: self.sent.extend(_frames(text)))
        socket.on("framereceived", lambda text: self.received.extend(_frames(text)))

    @property
    def names(self) -> list[str]:
        return [frame["name"] for frame in self.sent]


def _frames(text: str | bytes) -> list[dict[str, Any]]:
    """What a message carries: one frame, or over SockJS several, also as texts; nothing in its own ones."""
    found = json.loads(text[1:] if text[:1] == "a" else text) if text[:1] in ("a", "{", "[") else []
    return [
        json.loads(each) if isinstance(each, str) else each
        for each in (found if isinstance(found, list) else [found])
    ]


def notify(server: RunningServer, *titles_: str, **fields: Any) -> None:
    for title in titles_:
        server.must_notify("alice", title=title, **fields)


async def ids(page: Page) -> dict[str, str]:
    """The `_id` of each item by its title."""
    found: dict[str, str] = await page.evaluate(
        "Object.fromEntries(inbox.items.map(({ title, _id }) => [title, _id]))"
    )
    return found


async def crash(page: Page, server: RunningServer) -> None:
    """SIGKILL; the server is back, the client not yet."""
    await page.evaluate(STAY_AWAY)
    server.kill()
    await page.wait_for_function("inbox.state === 'waiting'")
    server.start()


async def come_back(page: Page) -> None:
    # Again and again: a try may have begun before the server was there.
    await page.wait_for_function(f"inbox.connect(), {ONLINE}")


async def as_elsewhere(pages: Pages, server: RunningServer, page: Page, **options: Any) -> None:
    """The client has come to hold what another one reads now."""
    other = await online(pages, server, pageSize=100, **options)
    while await other.evaluate("inbox.hasMore"):
        await other.evaluate("inbox.content()")
    # When a document was changed last is told with the document only.
    state = (
        "JSON.stringify([inbox.items.map((item) => ({ ...item, updatedAt: 0 })), inbox.counts, inbox.unseen])"
    )
    expected = await other.evaluate(state)
    await page.wait_for_function(f"expected => {state} === expected", arg=expected)


# -- catching up ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sockjs", [False, True])
async def test_catching_up_after_a_crash(pages: Pages, server: RunningServer, sockjs: bool) -> None:
    """What was added, changed and deleted elsewhere meanwhile is there, and only the new ones are told of as such."""
    notify(server, *(f"old {number}" for number in range(5)))
    page = await online(pages, server, sockjs=sockjs)
    await crash(page, server)
    elsewhere = await online(pages, server)
    by_title = await ids(elsewhere)
    await elsewhere.evaluate("ids => inbox.delete(ids)", [by_title["old 0"], by_title["old 3"]])
    await elsewhere.evaluate("ids => inbox.restore(ids)", [by_title["old 3"]])
    await elsewhere.evaluate("ids => inbox.seen(ids)", [by_title["old 1"], by_title["old 2"]])
    await elsewhere.evaluate("ids => inbox.markUnseen(ids)", [by_title["old 2"]])
    notify(server, "new 1", "new 2", "seen there")
    await elsewhere.wait_for_function("inbox.items.length === 7")
    await elsewhere.evaluate("inbox.seen([inbox.items[0]._id])")

    await come_back(page)
    assert await titles(page) == ["seen there", "new 2", "new 1", "old 4", "old 3", "old 2", "old 1"]
    assert await page.evaluate("inbox.items.filter(({ seen }) => seen).map(({ title }) => title)") == [
        "seen there",
        "old 1",
    ]
    assert await events(page, "reconnected") == [{"missed": 2}]
    assert await events(page, "notification") == []
    await as_elsewhere(pages, server, page)


async def test_only_what_changed_is_sent(pages: Pages, server: RunningServer) -> None:
    """Coming back the client shows a ticket and how far it is, and reads no page."""
    notify(server, *(str(number) for number in range(8)))
    page = await pages.bare(server.url)
    spy = Spy(page)
    await connect(pages, server, page=page, pageSize=5)
    await page.wait_for_function(ONLINE)
    await crash(page, server)
    notify(server, "new")
    spy.sent.clear()
    spy.received.clear()
    await come_back(page)
    assert spy.names == ["join"]
    assert set(spy.sent[0]["data"]) == {"ticket", "v", "since"}
    assert await titles(page) == ["new", "7", "6", "5", "4", "3"]
    assert await page.evaluate("inbox.content().then((items) => items.map(({ title }) => title))") == [
        "2",
        "1",
        "0",
    ]


async def test_many_chunks(pages: Pages, server: RunningServer) -> None:
    """Hundreds of changes come in chunks, each once; cut off in the middle, the client goes on from there."""
    notify(server, "old")
    page = await pages.bare(server.url)
    spy = Spy(page)
    await connect(pages, server, page=page)
    await page.wait_for_function(ONLINE)
    await crash(page, server)
    for number in range(250):
        notify(server, str(number))
    spy.received.clear()
    await page.evaluate(
        """() => {
            // Whatever follows the first chunk is lost with the connection.
            const { WebSocket } = window;
            window.WebSocket = class extends WebSocket {
                set onmessage(receive) {
                    super.onmessage = (event) => {
                        receive(event);
                        if (JSON.parse(event.data).name !== "sync") return;
                        window.WebSocket = WebSocket;
                        super.onmessage = null;
                        this.onclose({ code: 1006, reason: "" });
                    };
                }
                set onclose(handler) { this.closed = super.onclose = handler; }
                get onclose() { return this.closed; }
            };
        }"""
    )
    await page.evaluate("inbox.connect()")
    await page.wait_for_function("inbox.state === 'waiting'")
    assert len(await titles(page)) == 101
    await come_back(page)
    assert await titles(page) == [*(str(number) for number in reversed(range(250))), "old"]
    assert await events(page, "reconnected") == [{"missed": 150}]
    resumed = [frame["data"]["documents"] for frame in spy.received if frame["name"] == "sync"]
    assert [len(documents) for documents in resumed][-2:] == [100, 50]
    await as_elsewhere(pages, server, page)


async def test_another_inbox_at_the_same_address(pages: Pages, tmp_path: Path) -> None:
    """What was held is dropped, and the inbox that is there now is read anew."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with RunningServer(first) as server:
        notify(server, "theirs 1", "theirs 2")
        page = await online(pages, server, pageSize=3)
        await page.evaluate("inbox.seenAll()")
        await page.evaluate(STAY_AWAY)
        server.kill()
        await page.wait_for_function("inbox.state === 'waiting'")
    with RunningServer(second, port=server.port) as server:
        notify(server, *(f"ours {number}" for number in range(5)))
        await come_back(page)
        assert await titles(page) == ["ours 4", "ours 3", "ours 2"]
        assert await page.evaluate("[inbox.hasMore, inbox.unseen]") == [True, 5]
        assert not await page.evaluate("inbox.items.some(({ seen }) => seen)")
        notify(server, "pushed")
        await page.wait_for_function("inbox.items.length === 4")
        await page.evaluate("inbox.content()")
        await as_elsewhere(pages, server, page)


async def test_changes_far_down(pages: Pages, server: RunningServer) -> None:
    """What changed beyond the end of the list comes with its page, as it is then."""
    notify(server, *(str(number) for number in range(9)))
    page = await online(pages, server, pageSize=3)
    await crash(page, server)
    elsewhere = await online(pages, server)
    by_title = await ids(elsewhere)
    await elsewhere.evaluate("id => inbox.seen([id])", by_title["1"])
    await elsewhere.evaluate("id => inbox.delete([id])", by_title["4"])
    await come_back(page)
    assert await titles(page) == ["8", "7", "6"]
    assert await events(page, "reconnected") == [{"missed": 0}]
    while await page.evaluate("inbox.hasMore"):
        await page.evaluate("inbox.content()")
    assert await titles(page) == ["8", "7", "6", "5", "3", "2", "1", "0"]
    await as_elsewhere(pages, server, page)


# -- changes -------------------------------------------------------------------------------------------------


async def test_undo_is_seen_on_every_screen(pages: Pages, server: RunningServer) -> None:
    """What was deleted comes back where it was, what was seen is unseen again, here and there."""
    notify(server, "one", "two", "three")
    here, there = await online(pages, server), await online(pages, server)
    two = (await ids(here))["two"]
    deleted = await here.evaluate("id => inbox.delete([id])", two)
    assert deleted == {"ids": [two], "count": 1}
    await there.wait_for_function("inbox.items.length === 2")
    await here.evaluate("({ ids }) => inbox.restore(ids)", deleted)
    seen = await there.evaluate("id => inbox.seen([id])", two)
    await here.wait_for_function("inbox.items[1]?.seen && inbox.unseen === 2")
    await there.evaluate("({ ids }) => inbox.markUnseen(ids)", seen)
    for page in (here, there):
        await page.wait_for_function("inbox.unseen === 3 && inbox.items.every(({ seen }) => !seen)")
        assert await titles(page) == ["three", "two", "one"]
        for name in ("delete", "restore", "seen", "unseen"):
            assert await events(page, name) == [{"ids": [two]}]


async def test_who_has_all_keeps_having_it(pages: Pages, server: RunningServer) -> None:
    """Also who reads a page that ends above what has come back: nothing behind it is lost sight of."""
    notify(server, "one", "two", "three", "four")
    other = await online(pages, server)
    by_title = await ids(other)
    older = [by_title[title] for title in ("one", "two", "three")]
    await other.evaluate("ids => inbox.delete(ids)", older)
    page = await online(pages, server)
    await page.evaluate("ids => inbox.restore(ids)", older)
    page_read = await page.evaluate(
        "inbox.content({ limit: 2 }).then((items) => items.map(({ title }) => title))"
    )
    assert page_read == ["three", "two"]
    await page.evaluate("id => inbox.delete([id])", by_title["one"])
    await page.evaluate("id => inbox.restore([id])", by_title["one"])
    assert await titles(page) == ["four", "three", "two", "one"]
    assert not await page.evaluate("inbox.hasMore")


async def test_a_change_tells_what_it_changed(pages: Pages, server: RunningServer) -> None:
    """Not what was so before, nor what is nobody's."""
    notify(server, "one", "two")
    page = await online(pages, server)
    one, two = (await ids(page)).values()
    assert await page.evaluate("ids => inbox.seen(ids)", [one]) == {"ids": [one], "count": 1}
    both = await page.evaluate("ids => inbox.seen(ids)", [one, two, "f" * 24])
    assert both == {"ids": [two], "count": 1}
    assert await page.evaluate("id => inbox.restore([id])", one) == {"ids": [], "count": 0}


async def test_changes_of_an_hour_offline(pages: Pages, server: RunningServer) -> None:
    """They are made in their order when the connection is back, and then tell what they changed."""
    notify(server, "one", "two", "three")
    page = await online(pages, server)
    by_title = await ids(page)
    await crash(page, server)
    await page.evaluate(
        """({ one, two }) => {
            window.results = Promise.all([inbox.delete([one]), inbox.seen([two]), inbox.restore([one])]);
        }""",
        by_title,
    )
    await come_back(page)
    assert [changed["ids"] for changed in await page.evaluate("results")] == [
        [by_title["one"]],
        [by_title["two"]],
        [by_title["one"]],
    ]
    await as_elsewhere(pages, server, page)


async def test_all_seen_spares_what_comes_later(pages: Pages, server: RunningServer) -> None:
    """Said without a connection, it holds for what was there then."""
    notify(server, "one", "two")
    page = await online(pages, server)
    await crash(page, server)
    await page.evaluate("void (window.marked = inbox.seenAll())")
    notify(server, "later")
    await come_back(page)
    assert (await page.evaluate("marked"))["count"] == 2
    await page.wait_for_function("inbox.unseen === 1")
    assert await page.evaluate("inbox.items.map(({ seen }) => seen)") == [False, True, True]


async def test_all_seen_reaches_what_was_changed_last(pages: Pages, server: RunningServer) -> None:
    """Also one that lies far down and was marked as unseen after all that is shown had come."""
    notify(server, *(str(number) for number in range(9)))
    elsewhere = await online(pages, server)
    await elsewhere.evaluate("inbox.seenAll()")
    await elsewhere.evaluate("id => inbox.markUnseen([id])", (await ids(elsewhere))["1"])
    page = await online(pages, server, pageSize=3)
    assert await page.evaluate("[inbox.unseen, inbox.items.every(({ seen }) => seen)]") == [1, True]
    assert await page.evaluate("inbox.seenAll()") == {"ids": [], "count": 1}
    await page.wait_for_function("inbox.unseen === 0")


# -- counts and filter ---------------------------------------------------------------------------------------


async def test_counts_by_type(pages: Pages, server: RunningServer) -> None:
    """Of the whole inbox, whatever the list holds, and as soon as they change."""
    notify(server, *(str(number) for number in range(6)), type="order")
    notify(server, "a", "b", type="chat")
    page = await online(pages, server, pageSize=3)
    assert await page.evaluate("inbox.counts") == {
        "unseen": 8,
        "total": 8,
        "types": {"order": {"unseen": 6, "total": 6}, "chat": {"unseen": 2, "total": 2}},
    }
    await page.evaluate("void inbox.on('counts', ({ types }) => (window.types = types))")
    await page.evaluate("inbox.delete([inbox.items[0]._id])")
    await page.wait_for_function("window.types?.chat.total === 1")
    await page.evaluate("inbox.seenAll()")
    await page.wait_for_function("types.order.unseen === 0 && types.order.total === 6")


async def test_filter(pages: Pages, server: RunningServer) -> None:
    """The list holds one type only, page by page and after a break; events and counts are those of all."""
    for number in range(10):
        notify(server, f"order {number}", type="order")
        notify(server, f"chat {number}", type="chat")
    page = await online(pages, server, pageSize=4)
    await page.evaluate("inbox.filter('chat')")
    assert await titles(page) == ["chat 9", "chat 8", "chat 7", "chat 6"]
    await page.evaluate("inbox.content()")
    notify(server, "order 10", type="order")
    notify(server, "chat 10", type="chat")
    await page.wait_for_function("inbox.items[0].title === 'chat 10'")
    assert len(await events(page, "notification")) == 2
    await crash(page, server)
    notify(server, "order 11", type="order")
    notify(server, "chat 11", type="chat")
    await come_back(page)
    assert await titles(page) == [f"chat {number}" for number in range(11, 1, -1)]
    assert await events(page, "reconnected") == [{"missed": 1}]
    await page.evaluate("inbox.content()")
    assert await page.evaluate("[inbox.items.length, inbox.hasMore, inbox.counts.total]") == [12, False, 24]
    await page.evaluate("inbox.filter(null)")
    assert await titles(page) == ["chat 11", "order 11", "chat 10", "order 10"]
    await page.evaluate("inbox.content({ limit: 50 })")
    await as_elsewhere(pages, server, page)


# -- coming back ---------------------------------------------------------------------------------------------


async def test_coming_back_needs_no_token(pages: Pages, tmp_path: Path) -> None:
    """The page's backend is asked once, however often the connection breaks."""
    issuer = Issuer()
    with RunningServer(tmp_path, NOTIFY_JWT_SECRET=SECRET) as server:
        page = await issuer.open(pages, server)
        await page.wait_for_function(ONLINE)
        for number in range(2):
            await crash(page, server)
            notify(server, str(number))
            await come_back(page)
    assert await titles(page) == ["1", "0"]
    assert issuer.asked == 1


async def test_a_ticket_that_is_refused(pages: Pages, tmp_path: Path) -> None:
    """The client proves who it is as at first, and is online without a word to the page."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    issuer = Issuer()
    with RunningServer(first, NOTIFY_JWT_SECRET=SECRET) as server:
        page = await issuer.open(pages, server)
        await page.wait_for_function(ONLINE)
        await page.evaluate(STAY_AWAY)
        server.kill()
        await page.wait_for_function("inbox.state === 'waiting'")
    with RunningServer(second, port=server.port, NOTIFY_JWT_SECRET=SECRET) as server:
        await come_back(page)
        assert issuer.asked == 2
        assert await events(page, "error") == []
        assert (await states(page))[-2:] == ["connecting", "online"]


@pytest.mark.parametrize("sockjs", [False, True])
async def test_the_server_says_when_to_come_back(pages: Pages, server: RunningServer, sockjs: bool) -> None:
    """A server that ends in order tells each client another time; that is when it comes."""
    page = await pages.bare(server.url)
    spy = Spy(page)
    await connect(pages, server, page=page, sockjs=sockjs)
    await page.wait_for_function(ONLINE)
    await page.evaluate(STAY_AWAY)
    server.stop()
    await page.wait_for_function("events.some(([name, { state }]) => state === 'waiting')")
    waiting = [event for event in await events(page, "state") if event["state"] == "waiting"]
    [bye] = [frame for frame in spy.received if frame["name"] == "bye"]
    assert waiting[0]["retryInMs"] == bye["data"]["retry_ms"]
    server.start()
    await come_back(page)


# -- a server that knows the classic dialect only ------------------------------------------------------------


async def test_old_server(pages: Pages, server: RunningServer) -> None:
    """The client does there what it always did; what such a server cannot do is refused."""
    async with ClassicServer().listening() as old:
        for number in range(5):
            await old.notify(str(number))
        page = await connect(pages, server, url=old.url, pageSize=3)
        await page.wait_for_function(ONLINE)
        assert await page.evaluate("[inbox.dialect, inbox.unseen, inbox.hasMore]") == [1, 5, True]
        assert await titles(page) == ["4", "3", "2"]
        await page.evaluate("inbox.content()")
        await old.notify("pushed")
        await page.wait_for_function("inbox.items.length === 6")
        seen = await page.evaluate("inbox.seen(inbox.items.slice(0, 2).map(({ _id }) => _id))")
        assert seen["count"] == 2
        await page.wait_for_function("inbox.unseen === 4")
        await page.evaluate("inbox.delete([inbox.items[0]._id])")
        await page.wait_for_function("inbox.items.length === 5")
        for command in ("restore([inbox.items[0]._id])", "markUnseen([])", "filter('x')"):
            assert await page.evaluate(f"inbox.{command}.catch(({{ code }}) => code)") == "unsupported"
        await page.evaluate("inbox.seenAll()")
        await page.wait_for_function("inbox.unseen === 0 && inbox.items.every(({ seen }) => seen)")
        assert await page.evaluate("inbox.state") == "online"

        await page.evaluate(STAY_AWAY)
        await old.cut()
        await page.wait_for_function("inbox.state === 'waiting'")
        assert await page.evaluate("inbox.seenAll()") is False
        await page.evaluate("void inbox.delete([inbox.items[0]._id])")
        await old.notify("meanwhile")
        await come_back(page)
        await page.wait_for_function("inbox.items.length === 5")
        assert await titles(page) == ["meanwhile", "3", "2", "1", "0"]
        assert await events(page, "reconnected") == [{"missed": 1}]
        assert [event["notification"]["title"] for event in await events(page, "notification")] == ["pushed"]


async def test_wrong_password_at_an_old_server(pages: Pages, server: RunningServer) -> None:
    """Is said once, and not tried again."""
    async with ClassicServer().listening() as old:
        page = await connect(pages, server, url=old.url, password="wrong")
        await page.wait_for_function("inbox.state === 'closed'")
        await page.wait_for_function("events.some(([name]) => name === 'error')")
        assert [error["code"] for error in await events(page, "error")] == ["bad_credentials"]


async def test_a_server_goes_back_and_forth_between_versions(pages: Pages, server: RunningServer) -> None:
    """The client follows, whatever it held of the other one: tickets and how far it was are worth nothing there."""
    notify(server, "new server")
    page = await online(pages, server)
    await page.evaluate(STAY_AWAY)
    server.kill()
    await page.wait_for_function("inbox.state === 'waiting'")
    async with ClassicServer().listening(server.port) as old:
        await old.notify("old server")
        await come_back(page)
        assert [await page.evaluate("inbox.dialect"), await titles(page)] == [1, ["old server"]]
        assert await events(page, "error") == []
        await old.cut()
        await page.wait_for_function("inbox.state === 'waiting'")
    server.start()
    await come_back(page)
    assert [await page.evaluate("inbox.dialect"), await titles(page)] == [2, ["new server"]]
    await as_elsewhere(pages, server, page)


# -- the rules, with a scripted socket -----------------------------------------------------------------------

JOINED = "sockets.at(-1).onopen(); sockets.at(-1).joined(); "


async def joined(pages: Pages, server: RunningServer, documents: str = "[]", rest: str = "{}") -> Page:
    """A page with a client that is online over a `FakeSocket`, and was answered with these documents."""
    page = await scripted(pages, server)
    await settle(page, f"sockets[0].onopen(); sockets[0].joined({rest})")
    await settle(page, f"sockets[0].answer('content', {{ documents: {documents}, older: false }})")
    assert await page.evaluate("inbox.state") == "online"
    return page


async def break_off(page: Page, code: int = 1006) -> None:
    """The connection is lost, the next one is open."""
    await settle(page, f"sockets.at(-1).onclose({{ code: {code}, reason: '' }})")
    await page.clock.run_for((await events(page, "state"))[-1]["retryInMs"])
    await settle(page, "sockets.at(-1).onopen()")


async def test_nothing_is_asked_before_signing_in(pages: Pages, server: RunningServer) -> None:
    """A network that is back while the page fetches a new token does not make the client ask what has changed: the
    server would take it for one of the classic dialect, and answer in that."""
    page = await scripted(pages, server, "void (window.fetchToken = () => window.token)")
    await settle(page, "sockets[0].onopen()")
    await settle(page, "sockets[0].joined()")
    await settle(page, "sockets[0].answer('content', { documents: [], older: false })")
    assert await page.evaluate("inbox.state") == "online"
    await page.evaluate("void (window.token = new Promise((resolve) => (window.fetched = resolve)))")
    await settle(page, "sockets[0].onclose({ code: 3005, reason: 'token_expired' })")
    await settle(page, "sockets[1].onopen()")
    await settle(page, "window.dispatchEvent(new Event('online'))")
    await settle(page, "fetched('new')")
    assert await page.evaluate("sockets[1].sent.map(({ name }) => name)") == ["join"]


async def test_what_is_known_is_not_told_again(pages: Pages, server: RunningServer) -> None:
    """Only a state with a greater rev than the known one counts, also of what is deleted, whichever comes first."""
    page = await joined(pages, server, "[doc(1, { rev: '05', seen: false }), doc(2, { rev: '05' })]")
    one, two = await page.evaluate("[doc(1)._id, doc(2)._id]")
    await settle(page, f"sockets[0].push('seen', {{ ids: ['{one}'], rev: '04' }})")
    await settle(page, f"sockets[0].push('delete', {{ ids: ['{one}', '{two}'], rev: '05' }})")
    assert await page.evaluate("inbox.items.map(({ title, seen }) => [title, seen])") == [
        ["n2", True],
        ["n1", False],
    ]
    await settle(page, f"sockets[0].push('delete', {{ ids: ['{two}'], rev: '08' }})")
    await settle(page, "sockets[0].push('restored', doc(2, { rev: '07' }))")
    await settle(
        page,
        "sockets[0].push('sync', { documents: [doc(2, { rev: '06' })], upto: 's', floor: null, reset: false })",
    )
    assert await titles(page) == ["n1"]
    await settle(page, "sockets[0].push('restored', doc(2, { rev: '09', title: 'back' }))")
    await settle(page, "sockets[0].push('notification', doc(1, { rev: '04', title: 'old' }))")
    assert await titles(page) == ["back", "n1"]


async def test_all_seen_holds_for_what_comes_late(pages: Pages, server: RunningServer) -> None:
    """Who is told that all up to a rev is seen knows it of those, too, of which they hear later; not of newer ones."""
    page = await joined(
        pages, server, "[doc(1, { rev: '05', seen: false }), doc(2, { rev: '08', seen: false })]"
    )
    await settle(page, "sockets[0].push('seen', { all: true, upto: '06' })")
    await settle(page, "sockets[0].push('notification', doc(3, { rev: '06', seen: false }))")
    await settle(page, "sockets[0].push('notification', doc(4, { rev: '07', seen: false }))")
    assert await page.evaluate("inbox.items.map(({ title, seen }) => [title, seen])") == [
        ["n4", False],
        ["n3", True],
        ["n2", False],
        ["n1", True],
    ]
    assert await events(page, "seen") == [{"ids": [await page.evaluate("doc(1)._id")]}]


async def test_pushes_do_not_move_how_far_the_client_is(pages: Pages, server: RunningServer) -> None:
    """It comes back with the last word of a sync, also with that of one in the middle."""
    page = await joined(pages, server)
    await settle(page, "sockets[0].push('notification', doc(1, { rev: '0000000000000009' }))")
    await break_off(page)
    assert await page.evaluate("sockets[1].sent[0].data.since") == "s1"
    await settle(
        page,
        "sockets[1].joined({ since: null, more: true }); sockets[1].changed('join', [], { more: true, upto: 'mid' })",
    )
    assert await page.evaluate("inbox.state") == "connecting"
    await break_off(page)
    assert await page.evaluate("sockets[2].sent[0].data.since") == "mid"


async def test_a_first_page_that_did_not_come(pages: Pages, server: RunningServer) -> None:
    """Who was cut off before the inbox was read has nothing to go on from."""
    page = await scripted(pages, server)
    await settle(page, JOINED)
    await break_off(page)
    assert await page.evaluate("sockets[1].sent.map(({ name, data }) => [name, 'since' in data])") == [
        ["join", False],
        ["content", False],
    ]


async def test_reset_while_online(pages: Pages, server: RunningServer) -> None:
    """The inbox is read anew, and what is pushed meanwhile is not lost."""
    page = await joined(pages, server, "[doc(1, { rev: '99' })]")
    await settle(page, "sockets[0].push('missed', {})")
    assert await page.evaluate("sockets[0].sent.at(-1).data") == {"since": "s1"}
    await settle(page, "sockets[0].changed('sync', [], { reset: true, upto: 'other' })")
    await settle(page, "sockets[0].push('notification', doc(3, { rev: '03' }))")
    await settle(page, "sockets[0].answer('content', { documents: [doc(2, { rev: '02' })], older: false })")
    assert await titles(page) == ["n3", "n2"]
    await break_off(page)
    assert await page.evaluate("sockets[1].sent[0].data.since") == "other"


async def test_closed_while_it_is_read_anew(pages: Pages, server: RunningServer) -> None:
    """The client stays closed; and one whose inbox cannot be read anew comes back later."""
    page = await joined(pages, server)
    reset = "sockets.at(-1).push('sync', { documents: [], upto: 's', floor: null, reset: true })"
    await settle(page, f"{reset}; inbox.close()")
    await page.clock.run_for(60_000)
    assert await page.evaluate("[inbox.state, sockets.length]") == ["closed", 1]
    await settle(page, "inbox.connect(); " + JOINED)
    await settle(page, f"sockets[1].answer('content', {{ documents: [], older: false }}); {reset}")
    error = "{ code: 'store_unavailable', message: 'away', retryable: true }"
    await settle(page, f"sockets[1].answer('content', {error}, 'error')")
    assert await page.evaluate("[inbox.state, sockets[1].isClosed]") == ["waiting", True]


@pytest.mark.parametrize("then", ["", "inbox.connect();"])
async def test_closed_by_who_hears_that_it_tries_again(
    pages: Pages, server: RunningServer, then: str
) -> None:
    """Nothing comes of that try, whether or not the client is told to connect anew."""
    page = await joined(pages, server)
    listener = (
        f"if (state === 'connecting' && !window.heard) {{ window.heard = true; inbox.close(); {then} }}"
    )
    await settle(page, f"inbox.on('state', ({{ state }}) => {{ {listener} }})")
    await settle(page, "sockets[0].onclose({ code: 1006, reason: '' })")
    await page.clock.run_for(1000)
    await settle(page, "for (const socket of sockets) if (!socket.isClosed) socket.onopen?.()")
    open_ones = "sockets.slice(1).filter(({ isClosed }) => !isClosed)"
    if then:
        assert await page.evaluate(f"{open_ones}.map(({{ sent }}) => sent[0].name)") == ["join"]
    else:
        assert await page.evaluate(f"[inbox.state, {open_ones}.length]") == ["closed", 0]


async def test_floor(pages: Pages, server: RunningServer) -> None:
    """What was created before it is dropped, and the page is told; there is nothing older then."""
    page = await joined(pages, server, "[doc(3), doc(2), doc(1)]")
    await settle(
        page,
        "sockets[0].push('sync', { documents: [], upto: 's', floor: doc(2).createdAt, reset: false })",
    )
    assert await titles(page) == ["n3", "n2"]
    assert await page.evaluate("list") == {"titles": ["n3", "n2"], "hasMore": False}


async def test_what_comes_by_itself_pushes_off_the_end(pages: Pages, server: RunningServer) -> None:
    """A page that stays open holds the newest, however many come; what it does not hold any more it can page to."""
    page = await joined(pages, server, "docs(2, 1)")
    await settle(
        page, "for (let n = 3; n <= 1500; n++) sockets[0].push('notification', doc(n, { seen: false }))"
    )
    assert (await titles(page))[:2] == ["n1500", "n1499"]
    assert (await titles(page))[-1] == "n1001"
    assert await page.evaluate("[inbox.items.length, list.titles.length, list.hasMore]") == [500, 500, True]
    assert len(await events(page, "notification")) == 1498
    await settle(page, "void inbox.content({ limit: 100 })")
    assert await page.evaluate("sockets[0].sent.at(-1).data.before") == await page.evaluate("doc(1001)._id")
    await settle(page, "sockets[0].answer('content', { documents: docs(1000, 901), older: true })")
    await settle(page, "sockets[0].push('notification', doc(1501, { seen: false }))")
    assert [(await titles(page))[0], (await titles(page))[-1], len(await titles(page))] == [
        "n1501",
        "n902",
        600,
    ]


async def test_what_comes_while_a_page_is_read(pages: Pages, server: RunningServer) -> None:
    """Nothing is pushed off between what is held and the page that is about to follow it."""
    page = await joined(pages, server, "docs(2, 1)")
    await settle(page, "for (let n = 3; n <= 600; n++) sockets[0].push('notification', doc(n))")
    await settle(page, "void inbox.content({ limit: 2 })")
    await settle(page, "sockets[0].push('notification', doc(601))")
    sync = "{ documents: [doc(602)], upto: 's2', floor: null, reset: false }"
    await settle(page, f"sockets[0].push('sync', {sync})")
    await settle(page, "sockets[0].answer('content', { documents: docs(100, 99), older: true })")
    expected = ["n602", "n601", *(f"n{number}" for number in range(600, 98, -1))]
    assert await titles(page) == expected


async def test_an_answer_that_was_lost(pages: Pages, server: RunningServer) -> None:
    """The change is asked for again on the next connection, and its promise is kept there."""
    page = await joined(pages, server, "[doc(1, { seen: false })]")
    await settle(page, "inbox.seen([doc(1)._id]).then((changed) => (window.changed = changed))")
    assert await page.evaluate("sockets[0].sent.at(-1).name") == "seen"
    await break_off(page)
    assert await page.evaluate("[sockets[1].sent.length, 'changed' in window]") == [1, False]
    await settle(page, "sockets[1].joined({ since: null, more: true }); sockets[1].changed('join', [])")
    await settle(page, "sockets[1].answer('seen', { ids: [doc(1)._id], rev: '0b', more: false })")
    assert await page.evaluate("[changed.count, inbox.items[0].seen]") == [1, True]


async def test_a_change_in_several_parts(pages: Pages, server: RunningServer) -> None:
    """It is answered when the last one has come."""
    page = await joined(pages, server)
    await settle(page, "inbox.delete(['a', 'b', 'c']).then((changed) => (window.changed = changed))")
    await settle(page, "sockets[0].answer('delete', { ids: ['a'], rev: '02', more: true })")
    assert await page.evaluate("'changed' in window") is False
    await settle(page, "sockets[0].answer('delete', { ids: ['c'], rev: '03', more: false })")
    assert await page.evaluate("changed") == {"ids": ["a", "c"], "count": 2}


async def test_a_change_that_is_refused(pages: Pages, server: RunningServer) -> None:
    """Who asked for it learns why, and so do all who listen for errors; nobody else is disturbed."""
    page = await joined(pages, server)
    await settle(
        page,
        "inbox.seen(['x']).catch(({ code, retryable }) => (window.refused = [code, retryable])); inbox.delete(['y'])",
    )
    error = "{ code: 'store_unavailable', message: 'away', retryable: true }"
    await settle(
        page, f"sockets[0].answer('seen', {error}, 'error'); sockets[0].answer('delete', {error}, 'error')"
    )
    assert await page.evaluate("[refused, inbox.state]") == [["store_unavailable", True], "online"]
    assert await events(page, "error") == [{"code": "store_unavailable", "message": "away"}] * 2


async def test_signing_out_gives_up_what_was_asked(pages: Pages, server: RunningServer) -> None:
    """It is not done for whoever signs in next."""
    page = await joined(pages, server)
    await settle(page, "inbox.seen(['x']).catch(({ message }) => (window.refused = message)); inbox.close()")
    assert await page.evaluate("refused") == "signed out"
    await settle(page, "inbox.connect(); " + JOINED)
    await settle(page, "sockets[1].answer('content', { documents: [], older: false })")
    assert await page.evaluate("sockets[1].sent.map(({ name }) => name)") == ["join", "content"]


async def test_somebody_else(pages: Pages, server: RunningServer) -> None:
    """If the next token is another user's, nothing of the first one stays, and nothing is done for the second."""
    page = await joined(pages, server, "[doc(1)]")
    await settle(page, "sockets[0].onclose({ code: 1006, reason: '' }); void inbox.seen([doc(1)._id])")
    await page.clock.run_for(1000)
    await settle(page, "sockets[1].onopen(); sockets[1].joined({ user: 'bob', since: null, more: true })")
    await settle(page, "sockets[1].changed('join', [doc(2)])")
    await settle(page, "sockets[1].answer('content', { documents: [doc(3), doc(2)], older: false })")
    assert await page.evaluate("[inbox.state, ...inbox.items.map(({ title }) => title)]") == [
        "online",
        "n3",
        "n2",
    ]
    assert await page.evaluate("sockets[1].sent.map(({ name }) => name)") == ["join", "content"]


async def test_goodbye(pages: Pages, server: RunningServer) -> None:
    """The next try is when the server said, not before; if it fails, delays grow from the first."""
    page = await joined(pages, server)
    await settle(
        page, "sockets[0].push('bye', { retry_ms: 600_000 }); sockets[0].onclose({ code: 1001, reason: '' })"
    )
    assert (await events(page, "state"))[-1] == {"state": "waiting", "retryInMs": 600_000}
    await page.clock.run_for(500_000)
    assert await page.evaluate("sockets.length") == 1
    await page.clock.run_for(100_000)
    assert await page.evaluate("sockets.length") == 2
    for delay in (1000, 2000):
        await settle(page, "sockets.at(-1).onclose({ code: 1006, reason: '' })")
        assert (await events(page, "state"))[-1] == {"state": "waiting", "retryInMs": delay}
        await page.clock.run_for(delay)


async def test_too_many_sign_ins(pages: Pages, server: RunningServer) -> None:
    """The client waits as long as it is told to, and some more of its own."""
    page = await scripted(pages, server)
    error = "{ code: 'rate_limited', message: 'slow', retryable: true, retry_ms: 5000 }"
    await settle(page, f"sockets[0].onopen(); sockets[0].answer('join', {error}, 'error')")
    assert (await events(page, "state"))[-1] == {"state": "waiting", "retryInMs": 6000}


async def test_tickets_are_renewed(pages: Pages, server: RunningServer) -> None:
    """The latest one is shown; refused, it is followed by the password on the same connection, and not shown again."""
    page = await joined(pages, server, rest="{ ticket: 't1' }")
    await settle(
        page,
        "sockets[0].push('sync', { documents: [], upto: 's2', floor: null, reset: false, ticket: 't2', more: false })",
    )
    await break_off(page)
    assert await page.evaluate("sockets[1].sent[0].data") == {"ticket": "t2", "v": 2, "since": "s2"}
    refused = "{ code: 'token_expired', message: 'old', retryable: false }"
    await settle(page, f"sockets[1].answer('join', {refused}, 'error')")
    assert await page.evaluate("sockets[1].sent.map(({ data }) => data)") == [
        {"ticket": "t2", "v": 2, "since": "s2"},
        {"login": "alice", "password": "alice", "v": 2, "since": "s2"},
    ]
    assert await events(page, "error") == []
    await break_off(page)
    assert "ticket" not in await page.evaluate("sockets[2].sent[0].data")


async def test_a_ticket_ends_with_its_token(pages: Pages, server: RunningServer) -> None:
    """When the token has ended the client comes back at once, and not by the ticket."""
    page = await joined(pages, server, rest="{ ticket: 't1' }")
    await settle(page, "sockets[0].onclose({ code: 3005, reason: 'token_expired' })")
    await settle(page, "sockets[1].onopen()")
    assert "ticket" not in await page.evaluate("sockets[1].sent[0].data")


async def test_a_long_silence(pages: Pages, server: RunningServer) -> None:
    """A server that has not been heard for two heartbeats is asked whether it is there; if it does not answer, it is
    gone."""
    page = await joined(pages, server)
    await page.clock.run_for(49_000)
    assert await page.evaluate("sockets[0].sent.length") == 2
    await page.clock.run_for(2_000)
    assert await page.evaluate("sockets[0].sent.at(-1).name") == "ping"
    await settle(page, "sockets[0].answer('ping', {}, 'pong')")
    await page.clock.run_for(49_000)
    assert await page.evaluate("[inbox.state, sockets[0].sent.length]") == ["online", 3]
    await page.clock.run_for(22_000)
    assert await page.evaluate("sockets[0].isClosed")
    assert "waiting" in await states(page)


async def test_heartbeats_that_sockjs_tells_of(pages: Pages, server: RunningServer) -> None:
    """They are signs of life: nothing needs to be asked. But they answer nothing."""
    page = await joined(pages, server)
    for _ in range(4):
        await page.clock.run_for(25_000)
        await settle(page, "sockets[0].onheartbeat()")
    assert await page.evaluate("sockets[0].sent.length") == 2
    await settle(page, "inbox.content().catch(() => {})")
    await page.clock.run_for(15_000)
    await settle(page, "sockets[0].onheartbeat()")
    await page.clock.run_for(6_000)
    assert await page.evaluate("sockets[0].isClosed")


async def test_a_store_that_is_away_at_the_join(pages: Pages, server: RunningServer) -> None:
    """The page is told once, and the client waits for as long as it takes."""
    page = await scripted(pages, server)
    await settle(page, "sockets[0].onopen()")
    for _ in range(5):
        await page.clock.run_for(15_000)
        await settle(page, "sockets[0].push('delayed', { code: 'store_unavailable', message: 'away' })")
    assert await page.evaluate("[inbox.state, sockets.length]") == ["connecting", 1]
    assert await events(page, "error") == [{"code": "store_unavailable", "message": "away"}]
    await settle(
        page, "sockets[0].joined(); sockets[0].answer('content', { documents: [doc(1)], older: false })"
    )
    assert await page.evaluate("[inbox.state, inbox.items.length]") == ["online", 1]


async def test_a_sync_that_the_server_could_not_answer(pages: Pages, server: RunningServer) -> None:
    """It is asked for again: something was missed."""
    page = await joined(pages, server)
    await settle(page, "sockets[0].push('missed', {})")
    error = "{ code: 'store_unavailable', message: 'away', retryable: true }"
    await settle(page, f"sockets[0].answer('sync', {error}, 'error')")
    await page.clock.run_for(10_000)
    assert await page.evaluate("sockets[0].sent.filter(({ name }) => name === 'sync').length") == 2
    await settle(page, "sockets[0].changed('sync', [doc(1, { seen: false })])")
    assert [event["notification"]["title"] for event in await events(page, "notification")] == ["n1"]


async def test_a_filter_that_the_server_could_not_answer(pages: Pages, server: RunningServer) -> None:
    """The list stays as it was, live."""
    page = await joined(pages, server, "[doc(1)]")
    await settle(page, "inbox.filter('x').catch(({ code }) => (window.refused = code))")
    await settle(page, "sockets[0].push('notification', doc(2))")
    await settle(
        page,
        "sockets[0].answer('content', { code: 'store_unavailable', message: 'away', retryable: true }, 'error')",
    )
    await settle(page, "sockets[0].push('notification', doc(3))")
    assert await page.evaluate("[refused, inbox.type, inbox.items.length]") == ["store_unavailable", None, 3]
