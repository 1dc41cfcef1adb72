"""The browser clients that are deployed with webservice-notification (CONTRACT C1), against our server.

What stands here makes the same calls as its `socket.js` and `notification.js`, and reads frames as those do: the
SockJS client gets `null` and an options object of its first version; a message is an object with `name` and `data`,
where `data` is a JSON string; a lost connection is made again at once, and joined again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page

from tests.support.pages import Pages
from tests.support.running_server import RunningServer

DEPLOYED = """([port, login, password]) => {
    const deployed = window.deployed = { unseen: {}, all: {}, heard: [], connects: 0 };
    const on = {
        notification(documents) {
            for (const document of documents) {
                if (document.seen == false) deployed.unseen[document._id] = document;
                deployed.all[document._id] = document;
            }
        },
        seen(ids) { for (const id of ids) delete deployed.unseen[id]; },
        delete(ids) { for (const id of ids) { delete deployed.unseen[id]; delete deployed.all[id]; } },
    };
    deployed.emit = (name, data) => deployed.socket.send(JSON.stringify({ name, data }));
    const connect = () => {
        const socket = new SockJS(`//${location.hostname}:${port}/notification`, null, { debug: false, devel: false });
        deployed.socket = socket;
        socket.onopen = () => { deployed.connects++; deployed.emit("join", { login, password }); };
        socket.onmessage = (event) => {
            // An event has a type, and the message as an object in its data.
            const message = event.type ? event.data : event;
            deployed.heard.push([message.name, typeof message.data]);
            const hear = on[message.name];
            if (!hear) return;
            const isParsed = typeof message.data === "object" && message.data !== null;
            hear(isParsed ? message.data : JSON.parse(message.data));
        };
        socket.onclose = () => connect();
    };
    connect();
}"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with RunningServer(tmp_path) as server:
        yield server


@pytest.fixture
async def pages(browser: Browser) -> AsyncIterator[Pages]:
    async with Pages(browser) as pages:
        yield pages


async def deployed(pages: Pages, server: RunningServer, login: str = "alice") -> Page:
    """A page with a deployed client that has connected."""
    page = await pages.bare(server.url)
    await page.add_script_tag(url=f"{server.url}/client/sockjs.min.js")
    await page.evaluate(DEPLOYED, [server.port, login, login])
    await page.wait_for_function("deployed.heard.length > 0")
    return page


async def titles(page: Page, which: str) -> list[str]:
    found: list[str] = await page.evaluate(
        "which => Object.values(deployed[which]).map(({ title }) => title)", which
    )
    return found


async def wait_for(page: Page, **sizes: int) -> None:
    """Until the client holds so many."""
    for which, size in sizes.items():
        await page.wait_for_function(
            "([which, size]) => Object.keys(deployed[which]).length === size", arg=[which, size]
        )


async def emit(page: Page, name: str, data: Any) -> None:
    await page.evaluate("([name, data]) => deployed.emit(name, data)", [name, data])


async def test_joining(pages: Pages, server: RunningServer) -> None:
    """A join brings all unseen, oldest first; the sign of a good one is a frame, also where there are none."""
    for number in range(3):
        server.must_notify("alice", title=str(number))
    page = await deployed(pages, server)
    await wait_for(page, unseen=3)
    assert await titles(page, "unseen") == ["0", "1", "2"]
    nobody = await deployed(pages, server, "bob")
    assert (await nobody.evaluate("deployed.heard"))[0] == ["notification", "string"]


async def test_the_life_of_a_notification(pages: Pages, server: RunningServer) -> None:
    """Pushed, marked as seen, found again by its page, deleted: every window of the user follows."""
    here, there = await deployed(pages, server), await deployed(pages, server)
    server.must_notify("alice", title="one")
    server.must_notify("alice", title="two")
    for page in (here, there):
        await wait_for(page, unseen=2, all=2)
    one, two = await here.evaluate("Object.keys(deployed.all)")
    await emit(here, "seen", {"ids": [one, two]})
    for page in (here, there):
        await wait_for(page, unseen=0, all=2)

    late = await deployed(pages, server)
    await emit(late, "content", {"page": 0})
    await wait_for(late, unseen=0, all=2)
    assert await titles(late, "all") == ["one", "two"]

    await emit(there, "delete", {"ids": [one]})
    for page in (here, there, late):
        await wait_for(page, all=1)
    for name in ("notification", "seen", "delete"):
        heard = await here.evaluate("name => deployed.heard.filter(([heard]) => heard === name)", name)
        assert heard and all(kind == "string" for _, kind in heard)


async def test_content_of_a_negative_page(pages: Pages, server: RunningServer) -> None:
    """The deployed client asks for min(0, page): whichever page is meant, that is the first."""
    for number in range(40):
        server.must_notify("alice", title=str(number))
    page = await deployed(pages, server)
    await emit(page, "seen", {"ids": await page.evaluate("Object.keys(deployed.unseen)")})
    await wait_for(page, unseen=0)
    late = await deployed(pages, server)
    await emit(late, "content", {"page": -3})
    await wait_for(late, all=30)
    assert await titles(late, "all") == [str(number) for number in range(30)]


async def test_unseen(pages: Pages, server: RunningServer) -> None:
    """The unseen can be asked for again."""
    server.must_notify("alice", title="one")
    page = await deployed(pages, server)
    await wait_for(page, unseen=1)
    await page.evaluate("deployed.unseen = {}")
    await emit(page, "unseen", {})
    await wait_for(page, unseen=1)


async def test_restart(pages: Pages, server: RunningServer) -> None:
    """A client that connects again at once, and then joins again, has after a restart what came meanwhile."""
    page = await deployed(pages, server)
    server.restart()
    server.must_notify("alice", title="meanwhile")
    await wait_for(page, unseen=1)
    assert await page.evaluate("deployed.connects") >= 2
    pages.forgive("ERR_CONNECTION")
    pages.forgive("WebSocket")
    pages.forgive("503")  # while it starts
