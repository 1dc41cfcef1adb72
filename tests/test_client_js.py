"""static/example/notifications.js, the client for any page, in a real browser against the real server.

Where the order of frames matters that a server cannot be made to send, a scripted socket takes the place of SockJS.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page

from server.assets import example_folder
from tests.support.answering import AnsweringServer
from tests.support.backends import add_key, known
from tests.support.browser import sockjs_client_js
from tests.support.js_client import CONNECT, Issuer, connect, events, online, scripted, settle, states, titles
from tests.support.jwt_keys import SECRET, claims, hs256
from tests.support.pages import Pages
from tests.support.passwords import cheap_hash
from tests.support.running_server import RunningServer

ROOT = Path(__file__).resolve().parents[1]
WAIT_S = 60.0
"""Long enough for a busy machine: it is reached only by what never comes."""

# Each transport of sockjs-client that Chromium can use, and the last word of the path it is known by on the wire.
TRANSPORTS = {
    "websocket": "websocket",
    "xhr-streaming": "xhr_streaming",
    "eventsource": "eventsource",
    "iframe-eventsource": "eventsource",
    "htmlfile": "htmlfile",
    "iframe-htmlfile": "htmlfile",
    "xhr-polling": "xhr",
    "iframe-xhr-polling": "xhr",
    "jsonp-polling": "jsonp",
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with RunningServer(tmp_path) as server:
        yield server


@pytest.fixture
async def pages(browser: Browser) -> AsyncIterator[Pages]:
    async with Pages(browser) as pages:
        yield pages


# -- over each transport -------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_every_transport(pages: Pages, server: RunningServer, transport: str) -> None:
    """Joining, pushes, marking as seen and deleting work over each transport of sockjs-client."""
    # Of a script that arrives when sockjs-client has just given up its request.
    pages.forgive("exception: _jp.")
    requests: list[str] = []
    server.must_notify("alice", title="waiting")
    page = await pages.bare(server.url)
    page.on("request", lambda request: requests.append(request.url))
    page.on("websocket", lambda socket: requests.append(socket.url))
    await page.add_script_tag(url=f"{server.url}/client/sockjs.min.js")
    options = {"transports": [transport]}
    await page.evaluate(CONNECT, {"base": server.url, "withSockJS": True, "options": options})
    await page.wait_for_function("inbox.state === 'online'")
    assert await titles(page) == ["waiting"]
    assert any(url.split("?")[0].endswith(f"/{TRANSPORTS[transport]}") for url in requests)

    server.must_notify("alice", title="pushed — ünïcode ✓ 🔔")
    await page.wait_for_function("inbox.items.length === 2 && inbox.unseen === 2")
    assert await titles(page) == ["pushed — ünïcode ✓ 🔔", "waiting"]
    assert [event["notification"]["title"] for event in await events(page, "notification")] == [
        "pushed — ünïcode ✓ 🔔"
    ]

    pushed = await page.evaluate("inbox.items[0]._id")
    await page.evaluate("id => inbox.seen([id])", pushed)
    await page.wait_for_function("inbox.unseen === 1 && inbox.items[0].seen")
    assert await events(page, "seen") == [{"ids": [pushed]}]
    await page.evaluate("id => inbox.delete([id])", pushed)
    await page.wait_for_function("inbox.items.length === 1")
    assert await events(page, "delete") == [{"ids": [pushed]}]
    await page.evaluate("inbox.close()")


async def test_plain_websocket(pages: Pages, server: RunningServer) -> None:
    """Without SockJS the client speaks over a plain WebSocket."""
    page = await online(pages, server)
    server.must_notify("alice", title="hello")
    await page.wait_for_function("inbox.items.length === 1")
    assert await page.evaluate("'SockJS' in window") is False


@pytest.mark.parametrize("sockjs", [False, True])
async def test_address_with_a_slash_at_its_end(pages: Pages, server: RunningServer, sockjs: bool) -> None:
    """It is the same address."""
    await online(pages, server, sockjs=sockjs, url=f"{server.url}/notification/")


@pytest.mark.parametrize("sockjs", [False, True])
async def test_page_of_another_origin(pages: Pages, server: RunningServer, sockjs: bool) -> None:
    """A page from elsewhere can load the client from the server and use it."""
    page = await pages.bare(f"http://localhost:{server.port}")
    await page.add_script_tag(url=f"{server.url}/client/sockjs.min.js")
    await page.evaluate(CONNECT, {"base": server.url, "withSockJS": sockjs, "options": {}})
    await page.wait_for_function("inbox.state === 'online'")
    server.must_notify("alice", title="hello")
    await page.wait_for_function("inbox.items.length === 1")


def test_vendored_sockjs_client() -> None:
    """The SockJS client in the project is, byte by byte, the one that its makers publish."""
    vendored = example_folder() / "vendor" / "sockjs.min.js"
    assert vendored.read_bytes() == sockjs_client_js().read_bytes()


# -- the list is the inbox -----------------------------------------------------------------------------------


async def test_paging_has_no_gaps(pages: Pages, server: RunningServer) -> None:
    """Paging goes through the inbox without a gap or a repetition, though a join tells of all unseen at once."""
    for number in range(130):
        server.must_notify("alice", title=str(number))
    page = await online(pages, server, pageSize=20)
    expected = [str(number) for number in reversed(range(130))]
    assert await titles(page) == expected[:20]
    assert await page.evaluate("inbox.unseen") == 130
    read = 20
    while await page.evaluate("inbox.hasMore"):
        answer = await page.evaluate("inbox.content().then((items) => items.map(({ title }) => title))")
        assert answer == expected[read : read + 20]
        read += len(answer)
        assert await titles(page) == expected[:read]
    assert read == 130


async def test_long_documents(pages: Pages, server: RunningServer) -> None:
    """Documents too long for one frame are read in as many as it takes: each once, in order, and so after a break."""
    for number in range(40):
        server.must_notify("alice", title=str(number), content="x" * 20_000)
    page = await online(pages, server, pageSize=15)
    expected = [str(number) for number in reversed(range(40))]
    assert await titles(page) == expected[:15]
    for read in (15, 30):
        answer = await page.evaluate("inbox.content().then((items) => items.map(({ title }) => title))")
        assert answer == expected[read : read + 15]
        assert await titles(page) == expected[: read + 15]
    assert await page.evaluate("inbox.hasMore") is False
    pages.forgive("WebSocket connection")
    pages.forgive("503")  # while it starts
    await page.evaluate("Math.random = () => 0.05")
    server.restart()
    await page.wait_for_function("events.filter(([name, { state }]) => state === 'online').length === 2")
    assert await titles(page) == expected
    assert await page.evaluate("inbox.unseen") == 40
    assert await page.evaluate("inbox.content()") == []
    assert await page.evaluate("inbox.hasMore") is False
    assert await events(page, "notification") == []


async def test_content_from_an_item(pages: Pages, server: RunningServer) -> None:
    """A page can begin at any item that is held, and at the newest."""
    for number in range(5):
        server.must_notify("alice", title=str(number))
    page = await online(pages, server, pageSize=5)
    third = await page.evaluate("inbox.items[2]._id")
    ask = "page => inbox.content(page).then((items) => items.map(({ title }) => title))"
    assert await page.evaluate(ask, {"before": third, "limit": 1}) == ["1"]
    assert await page.evaluate(ask, {"before": None, "limit": 2}) == ["4", "3"]
    assert len(await titles(page)) == 5
    with pytest.raises(Exception, match="is not one of the items"):
        await page.evaluate(ask, {"before": "0" * 24})


async def test_all_seen(pages: Pages, server: RunningServer) -> None:
    """Marking all as seen reaches what is not in the list, and all screens of the user, but nobody else's."""
    for number in range(12):
        server.must_notify("alice", "bob", title=str(number))
    here = await online(pages, server, pageSize=5)
    there = await online(pages, server, pageSize=5)
    other = await online(pages, server, pageSize=5, login="bob", password="bob")
    assert await here.evaluate("inbox.seenAll().then(({ count, ids }) => [count, ids.length])") == [12, 5]
    for page in (here, there):
        await page.wait_for_function("inbox.unseen === 0 && inbox.items.every(({ seen }) => seen)")
    assert await other.evaluate("inbox.unseen") == 12


async def test_after_a_break(pages: Pages, server: RunningServer) -> None:
    """After a break the list is the inbox again, as far down as before: what is new, seen and deleted meanwhile."""
    for number in range(8):
        server.must_notify("alice", title=str(number))
    page = await online(pages, server, pageSize=4)
    await page.evaluate("inbox.content()")
    await page.evaluate("Math.random = () => 1e6")  # it will not come back before it is told to
    pages.forgive("WebSocket connection")
    pages.forgive("503")  # while it starts
    server.kill()
    await page.wait_for_function("inbox.state === 'waiting'")
    server.start()
    other = await online(pages, server, pageSize=100)
    by_title = await other.evaluate("Object.fromEntries(inbox.items.map(({ title, _id }) => [title, _id]))")
    await other.evaluate("id => inbox.delete([id])", by_title["3"])
    await other.evaluate("id => inbox.seen([id])", by_title["6"])
    await other.wait_for_function("inbox.items.length === 7 && inbox.unseen === 6")
    new = [f"new {number}" for number in range(5)]
    for title in new:
        server.must_notify("alice", title=title)

    await page.evaluate("window.dispatchEvent(new Event('online'))")
    await page.wait_for_function("inbox.state === 'online'")
    assert await titles(page) == [*reversed(new), "7", "6", "5", "4", "2", "1", "0"]
    assert await page.evaluate("inbox.items.filter(({ seen }) => seen).map(({ title }) => title)") == ["6"]
    assert await page.evaluate("inbox.unseen") == 11


async def test_what_comes_during_a_break_pushes_nothing_off_the_end(
    pages: Pages, server: RunningServer
) -> None:
    """The list reaches down as far as before, however much is new at its top; what was below it still is."""
    for number in range(8):
        server.must_notify("alice", title=str(number))
    page = await online(pages, server, pageSize=3)
    await page.evaluate("Math.random = () => 1e6")
    pages.forgive("WebSocket connection")
    pages.forgive("503")  # while it starts
    server.kill()
    await page.wait_for_function("inbox.state === 'waiting'")
    server.start()
    new = [f"new {number}" for number in range(5)]
    for title in new:
        server.must_notify("alice", title=title)
    await page.evaluate("window.dispatchEvent(new Event('online'))")
    await page.wait_for_function("inbox.state === 'online'")
    shown = await titles(page)
    assert shown[:8] == [*reversed(new), "7", "6", "5"]
    assert len(shown) < 13
    assert await page.evaluate("inbox.hasMore")


async def test_commands_without_a_connection(pages: Pages, server: RunningServer) -> None:
    """What is marked and deleted without a connection is so as soon as there is one again."""
    for title in ("keep", "see", "delete"):
        server.must_notify("alice", title=title)
    page = await online(pages, server)
    await page.evaluate("Math.random = () => 1e6")
    server.stop()
    await page.wait_for_function("inbox.state === 'waiting'")
    await page.evaluate("void inbox.delete([inbox.items[0]._id]), void inbox.seen([inbox.items[1]._id])")
    with pytest.raises(Exception, match="not connected"):
        await page.evaluate("inbox.content()")
    server.start()
    await page.evaluate("inbox.connect()")
    await page.wait_for_function("inbox.items.length === 2 && inbox.unseen === 1")
    assert await page.evaluate("inbox.items.map(({ title, seen }) => [title, seen])") == [
        ["see", True],
        ["keep", False],
    ]
    pages.forgive("WebSocket connection")
    pages.forgive("503")  # while it starts


async def test_many_restarts(pages: Pages, server: RunningServer) -> None:
    """By itself, without a word from the page, a client is back after each restart."""
    pages.forgive("WebSocket connection")
    pages.forgive("503")  # while it starts
    page = await online(pages, server)
    await page.evaluate("Math.random = () => 0.05")  # short delays, for a short test
    for number in range(3):
        server.kill()
        await page.wait_for_function("inbox.state !== 'online'")
        server.start()
        server.must_notify("alice", title=str(number))
        await page.wait_for_function(
            "count => inbox.state === 'online' && inbox.items.length === count", arg=number + 1
        )


# -- signing in ----------------------------------------------------------------------------------------------


async def test_wrong_password(pages: Pages, server: RunningServer) -> None:
    """A refused sign-in is said once, and not tried again."""
    page = await connect(pages, server, password="wrong")
    await page.wait_for_function("inbox.state === 'closed'")
    [error] = await events(page, "error")
    assert error["code"] == "bad_credentials"
    assert await page.evaluate("inbox.items") == []
    await page.evaluate("window.dispatchEvent(new Event('online'))")
    assert await page.evaluate("inbox.state") == "closed"


async def test_close_and_connect_again(pages: Pages, server: RunningServer) -> None:
    """Signing out forgets the inbox; the same client may sign in again."""
    server.must_notify("alice", title="one")
    page = await online(pages, server)
    await page.evaluate("inbox.close()")
    assert await page.evaluate("[inbox.state, inbox.items.length, inbox.unseen, inbox.hasMore]") == [
        "closed",
        0,
        0,
        False,
    ]
    await page.evaluate("inbox.connect()")
    await page.wait_for_function("inbox.state === 'online' && inbox.items.length === 1")


async def test_content_is_data(pages: Pages, server: RunningServer) -> None:
    """What a notification holds arrives as it was sent, markup and `data`'s look-alikes included."""
    hostile = '<img src=x onerror="window.hacked=1"> </script> \u2028 {"name":"delete"}'
    server.must_notify("alice", title=hostile, content=hostile, url="javascript:alert(1)")
    page = await online(pages, server)
    item = json.loads(await page.evaluate("JSON.stringify(inbox.items[0])"))
    assert (item["title"], item["content"], item["url"]) == (hostile, hostile, "javascript:alert(1)")


# -- the order of frames, with a scripted socket -------------------------------------------------------------

OPEN = "sockets.at(-1).onopen(); sockets.at(-1).frame('notification', []); "
JOINED = OPEN + "sockets.at(-1).frame('count', { unseen: 0 }); "


async def test_what_is_sent_at_the_start(pages: Pages, server: RunningServer) -> None:
    """The first page is asked for right behind the join, without waiting for its answer."""
    page = await scripted(pages, server)
    await settle(page, "sockets[0].onopen()")
    assert await page.evaluate("sockets[0].sent") == [
        {"name": "join", "id": 1, "data": {"login": "alice", "password": "alice", "v": 2}},
        {"name": "content", "id": 2, "data": {"before": None, "limit": 3}},
    ]


async def test_push_before_the_first_page(pages: Pages, server: RunningServer) -> None:
    """A push that comes before the first page is told of as one, and hides nothing of the page."""
    page = await scripted(pages, server)
    await settle(page, JOINED + "sockets[0].frame('notification', [doc(9)])")
    assert await page.evaluate("inbox.state") == "connecting"
    await settle(page, "sockets[0].page(docs(9, 7), true)")
    assert await page.evaluate("[inbox.state, list]") == [
        "online",
        {"titles": ["n9", "n8", "n7"], "hasMore": True},
    ]
    assert [event["notification"]["title"] for event in await events(page, "notification")] == ["n9"]


async def test_push_before_an_older_page(pages: Pages, server: RunningServer) -> None:
    """A push that comes before the answer to a question is not taken for the answer, however old it is."""
    page = await scripted(pages, server)
    await settle(page, JOINED + "sockets[0].page(docs(6, 4), true)")
    await settle(
        page, "window.answer = null; inbox.content().then((items) => (answer = items.map((i) => i.title)))"
    )
    await settle(
        page, "sockets[0].frame('notification', [doc(7)]); sockets[0].frame('notification', [doc(1)])"
    )
    assert await page.evaluate("answer") is None
    await settle(page, "sockets[0].page([doc(3)], false)")
    assert await page.evaluate("answer") == ["n3"]
    assert await page.evaluate("list") == {"titles": ["n7", "n6", "n5", "n4", "n3"], "hasMore": False}
    assert [event["notification"]["title"] for event in await events(page, "notification")] == ["n7", "n1"]


async def test_answers_to_several_questions(pages: Pages, server: RunningServer) -> None:
    """Each answer goes to the question that it names, also when the server refused another command meanwhile."""
    page = await scripted(pages, server)
    await settle(page, JOINED + "sockets[0].page(docs(6, 4), true)")
    await settle(
        page,
        "window.answers = {}; for (const before of [null, doc(5)._id, doc(4)._id]) inbox.content({ before, limit: 1 })"
        ".then((items) => (answers[before] = items.map((i) => i.title)), () => (answers[before] = 'refused'))",
    )
    await settle(page, "sockets[0].frame('error', { code: 'store_unavailable', message: 'a seen failed' })")
    for before, number in (("null", 6), ("doc(5)._id", 4), ("doc(4)._id", 3)):
        await settle(page, f"sockets[0].page([doc({number})], true, {before})")
    assert await page.evaluate("Object.values(answers)") == ["refused", ["n4"], ["n3"]]
    assert await titles(page) == ["n6", "n5", "n4", "n3"]
    assert await events(page, "notification") == []


async def test_short_pages(pages: Pages, server: RunningServer) -> None:
    """A page with fewer than asked for, that older ones follow, is read on until all that was asked for is there."""
    page = await scripted(pages, server)
    await settle(page, JOINED + "sockets[0].page([doc(9)], true)")
    assert await page.evaluate("[inbox.state, sockets[0].sent.at(-1).data.limit]") == ["connecting", 2]
    await settle(page, "sockets[0].page(docs(8, 7), true)")
    assert await page.evaluate("inbox.state") == "online"
    await settle(page, "inbox.content().then((items) => (window.answer = items.map((i) => i.title)))")
    await settle(page, "sockets[0].page(docs(6, 5), true)")
    assert await page.evaluate("'answer' in window") is False
    await settle(page, "sockets[0].page([], false)")
    assert await page.evaluate("answer") == ["n6", "n5"]
    assert await page.evaluate("list") == {"titles": ["n9", "n8", "n7", "n6", "n5"], "hasMore": False}


async def test_closed_between_two_pages(pages: Pages, server: RunningServer) -> None:
    """A client that is closed as it shows the first part of a page asks for no more, and can be used again."""
    page = await scripted(pages, server)
    await settle(page, JOINED + "sockets[0].page(docs(9, 7), true)")
    await settle(page, "inbox.content().catch((error) => (window.refused = error.message))")
    await settle(
        page, "const off = inbox.on('list', () => { off(); inbox.close(); }); sockets[0].page([doc(6)], true)"
    )
    assert await page.evaluate("refused") == "the connection was closed"
    await settle(page, "inbox.connect(); " + JOINED + "sockets[1].page([doc(9)], false)")
    assert await page.evaluate("sockets[1].sent.map(({ name }) => name)") == ["join", "content"]


async def test_empty_page(pages: Pages, server: RunningServer) -> None:
    """A page without anything says that the inbox ends."""
    page = await scripted(pages, server)
    await settle(page, JOINED + "sockets[0].page(docs(3, 1), true)")
    assert await page.evaluate("inbox.hasMore") is True
    await settle(page, "inbox.content(); sockets[0].page([], false)")
    assert await page.evaluate("[inbox.hasMore, inbox.items.length]") == [False, 3]


async def test_older_version(pages: Pages, server: RunningServer) -> None:
    """Of two versions of a notification the one with the greater rev stays, in whichever order they come."""
    page = await scripted(pages, server)
    await settle(page, JOINED + "sockets[0].page([doc(1, { rev: '0b', title: 'new' })], false)")
    await settle(page, "sockets[0].frame('notification', [doc(1, { rev: '0a', title: 'old' })])")
    assert await titles(page) == ["new"]
    await settle(page, "sockets[0].frame('notification', [doc(1, { rev: '0c', title: 'newest' })])")
    assert await titles(page) == ["newest"]


async def test_changes_while_reading(pages: Pages, server: RunningServer) -> None:
    """What is seen or deleted while the inbox is being read anew is so in what is shown then."""
    page = await scripted(pages, server)
    await settle(
        page,
        "sockets[0].onopen(); sockets[0].frame('notification', [doc(1, { seen: false }), doc(2, { seen: false })])",
    )
    await settle(page, "sockets[0].frame('seen', [doc(2)._id]); sockets[0].frame('delete', [doc(1)._id])")
    await settle(page, "sockets[0].frame('count', { unseen: 0 }); sockets[0].page([doc(2)], false)")
    assert await page.evaluate("inbox.items.map(({ title, seen }) => [title, seen])") == [["n2", True]]


async def test_late_document_beyond_the_end(pages: Pages, server: RunningServer) -> None:
    """A push older than the end of the list is told of, and comes into the list with its page."""
    page = await scripted(pages, server)
    await settle(
        page,
        JOINED + "sockets[0].page(docs(6, 4), true); sockets[0].frame('notification', [doc(1)])",
    )
    assert await titles(page) == ["n6", "n5", "n4"]
    await settle(page, "inbox.content(); sockets[0].page(docs(3, 1), false)")
    assert await titles(page) == ["n6", "n5", "n4", "n3", "n2", "n1"]


async def test_error_answers_a_question(pages: Pages, server: RunningServer) -> None:
    """A page that the server cannot read is refused to the asker, and the connection lives on."""
    page = await scripted(pages, server)
    await settle(page, JOINED + "sockets[0].page(docs(3, 1), true)")
    await settle(page, "inbox.content().catch((error) => (window.refused = error.message))")
    await settle(page, "sockets[0].frame('error', { code: 'store_unavailable', message: 'away' })")
    assert await page.evaluate("[refused, inbox.state]") == ["away", "online"]


async def test_store_away_at_the_join(pages: Pages, server: RunningServer) -> None:
    """While its store is away the server keeps a join: the client waits for it, and does not ask again."""
    page = await scripted(pages, server)
    await settle(page, "sockets[0].onopen()")
    for _ in range(5):
        await page.clock.run_for(10_000)
        await settle(page, "sockets[0].frame('error', { code: 'store_unavailable', message: 'away' })")
    assert await page.evaluate("[inbox.state, sockets.length]") == ["connecting", 1]
    await settle(page, "sockets[0].frame('notification', []); sockets[0].frame('count', { unseen: 0 })")
    await settle(page, "sockets[0].page([], false)")
    assert await page.evaluate("inbox.state") == "online"


# -- trying again --------------------------------------------------------------------------------------------


async def test_delays_grow_to_a_limit(pages: Pages, server: RunningServer) -> None:
    """Each failure doubles the span from which the next delay is drawn, up to half a minute."""
    page = await scripted(pages, server)
    for delay in (1000, 2000, 4000, 8000, 16000, 30000, 30000):
        await settle(page, "sockets.at(-1).onclose({ code: 1006, reason: '' })")
        assert (await events(page, "state"))[-1] == {"state": "waiting", "retryInMs": delay}
        sockets = await page.evaluate("sockets.length")
        await page.clock.run_for(delay)
        assert await page.evaluate("sockets.length") == sockets + 1
    await page.evaluate("Math.random = () => 0.5")
    await settle(page, "sockets.at(-1).onclose({ code: 1006, reason: '' })")
    assert (await events(page, "state"))[-1]["retryInMs"] == 15000


@pytest.mark.parametrize(("lived_ms", "delay"), [(20_000, 1000), (500, 2000)])
async def test_delays_start_anew(pages: Pages, server: RunningServer, lived_ms: int, delay: int) -> None:
    """After a connection that lived for a while the delays start from the first; after a short one they go on."""
    page = await scripted(pages, server)
    await settle(page, "sockets[0].onclose({ code: 1006, reason: '' })")
    await page.clock.run_for(1000)
    await settle(page, JOINED + "sockets[1].page([], false)")
    await page.clock.run_for(lived_ms)
    await settle(page, "sockets[1].onclose({ code: 1006, reason: '' })")
    assert (await events(page, "state"))[-1] == {"state": "waiting", "retryInMs": delay}


async def test_silence(pages: Pages, server: RunningServer) -> None:
    """A connection that gives no answer counts as lost; one that nothing is asked of may be silent."""
    page = await scripted(pages, server)
    await settle(page, "sockets[0].onopen()")
    await page.clock.run_for(20_000)
    assert await page.evaluate("[inbox.state, sockets[0].isClosed]") == ["waiting", True]
    await page.clock.run_for(1000)
    await settle(page, JOINED + "sockets[1].page(docs(3, 1), true)")
    await page.clock.run_for(600_000)
    assert await page.evaluate("inbox.state") == "online"
    await settle(page, "inbox.content().catch((error) => (window.refused = error.message))")
    await page.clock.run_for(20_000)
    assert await page.evaluate("[inbox.state, refused]") == ["waiting", "no answer"]


VISIBILITY = """() => {
    let hidden = false;
    Object.defineProperty(document, "hidden", { get: () => hidden });
    window.setHidden = (value) => { hidden = value; document.dispatchEvent(new Event("visibilitychange")); };
}"""


async def test_back_in_the_foreground(pages: Pages, server: RunningServer) -> None:
    """A page that becomes visible tries again at once; after a long sleep it makes sure that the connection lives."""
    page = await scripted(pages, server)
    await page.evaluate(VISIBILITY)
    await settle(page, "sockets[0].onclose({ code: 1006, reason: '' }); setHidden(true); setHidden(false)")
    assert await page.evaluate("[inbox.state, sockets.length]") == ["connecting", 2]
    await settle(page, JOINED + "sockets[1].page([], false)")
    await settle(page, "setHidden(true); setHidden(false)")
    asked = await page.evaluate("sockets[1].sent.length")
    await settle(page, "setHidden(true)")
    await page.clock.run_for(61_000)
    await settle(page, "setHidden(false)")
    assert await page.evaluate("sockets[1].sent.length") == asked + 1
    await page.clock.run_for(20_000)
    assert await page.evaluate("inbox.state") == "waiting"


async def test_back_after_a_sleep(pages: Pages, server: RunningServer) -> None:
    """Also a machine that slept, so that only the clock on the wall has gone on, makes its page ask."""
    page = await scripted(pages, server)
    await settle(page, JOINED + "sockets[0].page([], false)")
    await page.evaluate(VISIBILITY)
    asked = await page.evaluate("sockets[0].sent.length")
    await settle(page, "setHidden(true)")
    await page.clock.set_system_time(3_600_000)
    await settle(page, "setHidden(false)")
    assert await page.evaluate("sockets[0].sent.length") == asked + 1


async def test_back_in_a_network(pages: Pages, server: RunningServer) -> None:
    """A page whose network is back, or another one, makes sure that the connection lives; else it comes back."""
    page = await scripted(pages, server)
    await settle(page, JOINED + "sockets[0].page([], false)")
    asked = await page.evaluate("sockets[0].sent.length")
    await settle(page, "window.dispatchEvent(new Event('online'))")
    assert await page.evaluate("sockets[0].sent.length") == asked + 1
    await page.clock.run_for(20_000)
    assert await page.evaluate("[inbox.state, sockets[0].isClosed]") == ["waiting", True]
    await settle(page, "window.dispatchEvent(new Event('online'))")
    assert await page.evaluate("[inbox.state, sockets.length]") == ["connecting", 2]


async def test_busy_at_the_join(pages: Pages, server: RunningServer) -> None:
    """A server too busy for a sign-in is asked again, later."""
    page = await scripted(pages, server)
    await settle(page, "sockets[0].onopen(); sockets[0].frame('error', { code: 'busy', message: 'later' })")
    assert await page.evaluate("[inbox.state, sockets[0].isClosed]") == ["waiting", True]


async def test_nothing_of_an_old_connection(pages: Pages, server: RunningServer) -> None:
    """After signing out nothing of the old connection reaches the page, and a new one is not disturbed by it."""
    page = await scripted(pages, server)
    await settle(page, "sockets[0].onopen(); inbox.close(); inbox.connect()")
    await settle(page, "sockets[0].frame('notification', [doc(1)])")
    await settle(page, JOINED + "sockets[1].page([doc(2)], false)")
    assert await page.evaluate("[inbox.state, sockets.length, list.titles]") == ["online", 2, ["n2"]]


# -- signing in by a token -----------------------------------------------------------------------------------


@pytest.fixture
def trusting(tmp_path: Path) -> Iterator[RunningServer]:
    """A server that believes the tokens signed with `SECRET`."""
    with RunningServer(tmp_path, NOTIFY_JWT_SECRET=SECRET) as server:
        yield server


@pytest.mark.parametrize("sockjs", [False, True])
async def test_token(pages: Pages, trusting: RunningServer, sockjs: bool) -> None:
    """A token is all that a page needs; a login beside it is not looked at."""
    trusting.must_notify("alice", title="hello")
    options = {"token": hs256(claims()), "login": "bob", "password": "bob"}
    page = await online(pages, trusting, sockjs=sockjs, **options)
    assert await titles(page) == ["hello"]


async def test_token_that_has_ended(pages: Pages, trusting: RunningServer) -> None:
    """Of a fixed token there is no newer one: the client stops, and says why."""
    page = await connect(pages, trusting, token=hs256(claims(exp=claims()["iat"] - 60)))
    await page.wait_for_function("inbox.state === 'closed'")
    assert [error["code"] for error in await events(page, "error")] == ["token_expired"]
    assert await states(page) == ["connecting", "closed"]


@pytest.mark.parametrize("sockjs", [False, True])
async def test_token_ends_while_online(pages: Pages, trusting: RunningServer, sockjs: bool) -> None:
    """A new one is fetched and joined with at once; what comes all the while is there once, and told of once."""
    issuer = Issuer(life_s=2)
    sent: list[str] = []
    page = await issuer.open(pages, trusting, sockjs=sockjs)
    await page.wait_for_function("inbox.state === 'online'")
    issuer.life_s = 600
    joins = issuer.asked
    while issuer.asked == joins or len(sent) < 5:
        sent.append(str(len(sent)))
        await asyncio.to_thread(trusting.must_notify, "alice", title=sent[-1])
        await asyncio.sleep(0.02)
    await page.wait_for_function("events.filter(([name, { state }]) => state === 'online').length === 2")
    trusting.must_notify("alice", title="last")
    await page.wait_for_function("inbox.items.some(({ title }) => title === 'last')")

    assert issuer.asked == joins + 1
    assert (await states(page))[-4:] == ["connecting", "online", "connecting", "online"]
    assert await events(page, "error") == []
    await page.wait_for_function("count => inbox.unseen === count", arg=len(sent) + 1)
    while await page.evaluate("inbox.hasMore"):
        await page.evaluate("inbox.content()")
    assert await titles(page) == ["last", *reversed(sent)]
    told = [event["notification"]["title"] for event in await events(page, "notification")]
    assert len(told) == len(set(told))
    # What the new list brought by itself needs no telling; what came before and after it does.
    assert {sent[0], "last"} <= set(told)


@pytest.mark.parametrize("sockjs", [False, True])
async def test_signed_out_everywhere(pages: Pages, trusting: RunningServer, sockjs: bool) -> None:
    """The client says so and stops: it fetches no new token, whatever happens."""
    issuer = Issuer()
    page = await issuer.open(pages, trusting, sockjs=sockjs)
    await page.wait_for_function("inbox.state === 'online'")
    assert (await asyncio.to_thread(trusting.run, "user", "sign-out", "alice")).returncode == 0
    await page.wait_for_function("inbox.state === 'closed'")
    await page.wait_for_function("events.some(([name]) => name === 'error')")
    assert await events(page, "error") == [{"code": "signed_out", "message": "you were signed out"}]
    await stays_closed(page)
    assert issuer.asked == 1


async def test_key_revoked(pages: Pages, server: RunningServer) -> None:
    """Who joined by a token of the server ends with the key that it was made with."""
    site = known(add_key(server, "default", "site", "listen"))
    page = await online(pages, server, token=site.token("alice"))
    server.must_run("key", "revoke", "default", "site")
    await page.wait_for_function("inbox.state === 'closed'")
    await page.wait_for_function("events.some(([name]) => name === 'error')")
    assert await events(page, "error") == [{"code": "revoked", "message": "access has ended"}]
    await stays_closed(page)


async def stays_closed(page: Page) -> None:
    """What would wake a client that waits does not wake it."""
    await page.evaluate("window.dispatchEvent(new Event('online'))")
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    assert (await states(page))[-1] == await page.evaluate("inbox.state") == "closed"


async def test_no_token_to_be_had(pages: Pages, trusting: RunningServer) -> None:
    """A page whose backend has none tries again later, and is online when it has one."""
    issuer = Issuer(life_s=None)
    page = await issuer.open(pages, trusting)
    await page.wait_for_function("events.filter(([name, { state }]) => state === 'waiting').length === 2")
    assert all(event["retryInMs"] > 0 for event in await events(page, "state") if event["state"] == "waiting")
    issuer.life_s = 600
    await page.wait_for_function("inbox.state === 'online'")


async def test_delays_without_a_token(pages: Pages, server: RunningServer) -> None:
    """A function that rejects, throws or never answers, and one whose token has ended, lead to the next try, each time
    later. An answer that comes too late is not used."""
    page = await scripted(pages, server, "void (window.fetchToken = () => window.answer())")

    async def next_try(answer: str, then: str = "") -> None:
        await page.evaluate(f"void (window.answer = {answer})")
        await settle(page, f"sockets.at(-1).onopen(); {then}")

    async def waits(retry_ms: int) -> None:
        assert (await events(page, "state"))[-1] == {"state": "waiting", "retryInMs": retry_ms}
        assert await page.evaluate("sockets.at(-1).isClosed")
        await page.clock.run_for(retry_ms)

    await next_try("() => Promise.reject(new Error('no token'))")
    await waits(1000)
    await next_try("() => { throw new Error('no token'); }")
    await waits(2000)
    await next_try("() => new Promise((resolve) => (window.late = resolve))")
    await page.clock.run_for(20_000)
    await waits(4000)
    assert await page.evaluate("sockets.flatMap(({ sent }) => sent)") == []
    await next_try("() => 'old'", "late('late')")
    assert await page.evaluate("sockets.at(-1).sent[0]") == {
        "name": "join",
        "id": 1,
        "data": {"token": "old", "v": 2},
    }
    await settle(page, "sockets.at(-1).frame('error', { code: 'token_expired', message: 'it has ended' })")
    assert [error["code"] for error in await events(page, "error")] == ["token_expired"]
    await waits(8000)
    await next_try("() => Promise.resolve('new')")
    await settle(page, JOINED.removeprefix("sockets.at(-1).onopen(); ") + "sockets.at(-1).page([], false)")
    assert await page.evaluate("sockets.flatMap(({ sent }) => sent.map(({ data }) => data.token))") == [
        "old",
        None,
        "new",
        None,
    ]
    assert await page.evaluate("inbox.state") == "online"


# -- as the documents show it --------------------------------------------------------------------------------


def shown(document: str, host: str, server: RunningServer) -> AnsweringServer:
    """A site of another origin with the page of this document, in which `host` is the server's."""
    found = re.search(r"^```html\n(.*?)^```$", (ROOT / document).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found
    assert host in found[1]
    site = AnsweringServer(found[1].replace(host, server.url).encode())
    site.headers["Content-Type"] = "text/html; charset=utf-8"
    return site


async def test_the_first_bell(pages: Pages, server: RunningServer) -> None:
    """The page of README.md rings, under whichever name of this machine it was opened: `python3 -m http.server` prints
    `http://0.0.0.0:8000/`."""
    pages.forgive("/favicon.ico")
    async with shown("README.md", "http://127.0.0.1:8587", server) as site:
        for name in ("127.0.0.1", "0.0.0.0"):  # noqa: S104  # opened, not bound
            server.must_notify("alice", title="hello")
            page = await pages.open(f"http://{name}:{site.port}/")
            await page.wait_for_function("document.title.endsWith('My site')")


async def test_the_first_bell_says_why_it_is_silent(pages: Pages, tmp_path: Path) -> None:
    """In the console of the browser, where its developer looks."""
    pages.forgive("/favicon.ico")
    pages.forgive("console: login or password is wrong")
    with RunningServer(tmp_path, NOTIFY_USERS_alice=cheap_hash("another")) as server:
        async with shown("README.md", "http://127.0.0.1:8587", server) as site:
            page = await pages.open("about:blank")
            async with page.expect_console_message(lambda message: "wrong" in message.text) as said:
                await page.goto(f"http://127.0.0.1:{site.port}/")
            assert (await said.value).text == "login or password is wrong"


async def test_a_site_that_once_has_no_token(pages: Pages, trusting: RunningServer) -> None:
    """The bell of docs/authentication.md asks for another one: what a site says of its failure is no token. It would be
    refused, and end it."""
    pages.forgive("/favicon.ico")
    pages.forgive("502")
    answers = [
        {"status": 502, "body": "<h1>Bad Gateway</h1>"},
        {"body": hs256(claims(exp=time.time() + 600))},
    ]
    joined = asyncio.Event()
    page = await pages.open("about:blank")
    page.on(
        "websocket",
        lambda socket: socket.on("framereceived", lambda text: '"joined"' in text and joined.set()),
    )
    await page.route("**/my/token", lambda route: route.fulfill(**answers.pop(0)))
    async with shown("docs/authentication.md", "https://notifications.example.org", trusting) as site:
        await page.goto(f"http://127.0.0.1:{site.port}/")
        await asyncio.wait_for(joined.wait(), WAIT_S)
    assert not answers
