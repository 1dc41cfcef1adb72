"""static/example/, the page that a newcomer sees first, in a real browser against the real server."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Locator, Page, Route, expect

from tests.support.pages import Pages
from tests.support.running_server import RunningServer

HOSTILE = '<img src=x onerror="window.hacked = true"><script>window.hacked = true</script>'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with RunningServer(tmp_path) as server:
        yield server


@pytest.fixture
async def pages(browser: Browser) -> AsyncIterator[Pages]:
    async with Pages(browser) as pages:
        yield pages


async def signed_in(pages: Pages, server: RunningServer, user: str = "alice", **context: Any) -> Page:
    """The page, with this user's inbox live."""
    page = await pages.open(f"{server.url}/?as={user}", **context)
    await expect(page.locator("#state-text")).to_have_text("Live")
    return page


def rows(page: Page) -> Locator:
    return page.locator("#list > li")


def row(page: Page, title: str) -> Locator:
    return page.locator("#list > li", has=page.get_by_role("heading", name=title))


async def shows(page: Page, headings: list[str]) -> None:
    """The list comes to show these, from above."""
    await expect(rows(page).get_by_role("heading")).to_have_text(headings, use_inner_text=True)


async def overflow(page: Page) -> int:
    """How many pixels wider than the window the page is."""
    assert page.viewport_size is not None
    # A phone's window.innerWidth grows with the page.
    width: int = await page.evaluate("document.documentElement.scrollWidth")
    return width - page.viewport_size["width"]


# -- signing in ----------------------------------------------------------------------------------------------


async def test_sign_in_as_a_demo_user(pages: Pages, server: RunningServer) -> None:
    """One click signs in a demo user, whom the address then names: loading it again needs no click."""
    page = await pages.open(server.url)
    await page.get_by_role("button", name="Sign in as alice").click()
    await expect(page.locator("#state-text")).to_have_text("Live")
    await expect(page.locator("#who")).to_have_text("alice")
    await expect(page.get_by_text("All quiet.")).to_be_visible()
    assert page.url == f"{server.url}/?as=alice"
    await page.reload()
    await expect(page.locator("#who")).to_have_text("alice")


async def test_sign_in_with_the_keyboard(pages: Pages, server: RunningServer) -> None:
    """A name and a password, typed and sent with Enter, sign in; the focus goes to the inbox."""
    page = await pages.open(server.url)
    await page.get_by_label("Name").press_sequentially("bob")
    await page.keyboard.press("Tab")
    await page.keyboard.type("bob")
    await page.keyboard.press("Enter")
    await expect(page.locator("#who")).to_have_text("bob")
    await expect(page.locator("#inbox")).to_be_focused()
    await page.get_by_role("button", name="Sign out").press("Enter")
    await expect(page.get_by_label("Name")).to_be_focused()
    await page.get_by_role("button", name="Sign in as alice").press("Enter")
    await expect(page.locator("#who")).to_have_text("alice")
    await expect(page.locator("#inbox")).to_be_focused()


async def test_wrong_password(pages: Pages, server: RunningServer) -> None:
    """A wrong password is said beside the form, to assistive technology too, and the next try may be right."""
    page = await pages.open(server.url)
    await page.get_by_label("Name").fill("alice")
    await page.get_by_label("Password").fill("wrong")
    await page.get_by_role("button", name="Sign in", exact=True).click()
    await expect(page.get_by_role("alert")).to_have_text("The name or the password is wrong.")
    await expect(page.get_by_label("Password")).to_be_focused()
    await page.get_by_label("Password").fill("alice")
    await page.keyboard.press("Enter")
    await expect(page.locator("#state-text")).to_have_text("Live")


async def test_sign_in_where_the_demo_users_are_not_told(pages: Pages, server: RunningServer) -> None:
    """A server that goes away just as the page is loaded leaves it with its form, by which one gets in later."""
    pages.forgive("ERR_FAILED")
    page = await pages.open("about:blank")
    await page.route("**/demo/users", lambda route: route.abort())
    await page.goto(f"{server.url}/?as=alice")
    await expect(page.get_by_role("alert")).to_have_text("The server does not answer.")
    await page.get_by_label("Name").fill("alice")
    await page.get_by_label("Password").fill("alice")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.locator("#state-text")).to_have_text("Live")


async def test_an_address_that_does_not_sign_in(pages: Pages, tmp_path: Path) -> None:
    """Whoever comes by an address with a name in it, and has to wait, is told why, and is in when the wait is over."""
    with RunningServer(tmp_path, NOTIFY_LIMITS_CONNECTIONS_PER_USER="1") as server:
        first = await signed_in(pages, server)
        second = await pages.open(f"{server.url}/?as=alice")
        await expect(second.get_by_role("alert")).to_contain_text("1 connections already")
        await first.close()
        await expect(second.locator("#state-text")).to_have_text("Live")
        await expect(second.get_by_role("alert")).to_be_hidden()


async def test_sign_out(pages: Pages, server: RunningServer) -> None:
    """Signing out leaves nothing of the user on the page, and the next user sees their own."""
    server.must_notify("alice", title="for alice")
    server.must_notify("bob", title="for bob")
    page = await signed_in(pages, server)
    await expect(rows(page)).to_have_count(1)
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("button", name="Sign in as bob")).to_be_visible()
    assert "for alice" not in await page.content()
    await page.get_by_role("button", name="Sign in as bob").click()
    await shows(page, ["Unseen: for bob"])


# -- what arrives --------------------------------------------------------------------------------------------


async def test_live(pages: Pages, server: RunningServer) -> None:
    """A notification appears by itself, newest first, with all that it holds; the bell counts and it is said aloud."""
    server.must_notify("alice", title="first")
    page = await signed_in(pages, server)
    server.must_notify(
        "alice",
        title="Build passed",
        content="214 tests\nno warning",
        type="build",
        url="https://example.test/builds/1",
        icon="✅",
        image="/example/sample.svg",
    )
    await expect(rows(page)).to_have_count(2)
    await shows(page, ["Unseen: Build passed", "Unseen: first"])
    newest = rows(page).first
    await expect(newest.locator(".item-text")).to_have_text("214 tests\nno warning")
    await expect(newest.locator(".item-icon")).to_have_text("✅")
    await expect(newest.locator(".type")).to_have_text("build")
    await expect(newest.locator("time")).to_have_text("now")
    await expect(newest.get_by_role("link")).to_have_attribute("href", "https://example.test/builds/1")
    await expect(newest.get_by_role("link")).to_have_attribute("rel", "noopener noreferrer")
    await expect(newest.locator(".item-image")).to_have_js_property("naturalWidth", 640)
    await expect(page.locator("#badge")).to_have_text("2")
    await expect(page.get_by_role("button", name="Notifications, 2 unseen")).to_be_visible()
    await expect(page).to_have_title("(2) Notifications")
    announcer = page.locator("[aria-live=polite]")
    await expect(announcer).to_have_text("New notification: Build passed. 214 tests no warning")


async def test_icons(pages: Pages, server: RunningServer) -> None:
    """An icon is a picture, a short text, or an initial; what cannot be loaded or is no such thing is a bell."""
    for icon in ("/example/favicon.svg", "🔔", "fa-user", "/missing.png", "javascript:alert(1)", ""):
        server.must_notify("alice", title=f"icon {icon}", icon=icon)
    pages.forgive("/missing.png")
    page = await signed_in(pages, server)
    tiles = page.locator(".item-icon")
    await expect(tiles).to_have_text(["", "", "", "F", "🔔", ""])
    await expect(tiles.nth(5).locator("img")).to_have_attribute("src", f"{server.url}/example/favicon.svg")
    for index in (0, 1, 2):
        await expect(tiles.nth(index).locator("svg")).to_have_count(1)


async def test_missing_image(pages: Pages, server: RunningServer) -> None:
    """An image that cannot be loaded leaves no hole."""
    server.must_notify("alice", title="hole", image="/missing.png")
    server.must_notify("alice", title="script", image="javascript:alert(1)")
    pages.forgive("/missing.png")
    page = await signed_in(pages, server)
    await expect(rows(page)).to_have_count(2)
    await expect(page.locator(".item-image")).to_have_count(0)


async def test_hostile_content(pages: Pages, server: RunningServer) -> None:
    """Markup is shown as the text that it is, and only an http address or a path becomes a link."""
    for url in (
        "javascript:window.hacked=true",
        "data:text/html,x",
        " JavaScript:void 0",
        "vbscript:x",
        "//[",
        HOSTILE,
        "no address",
        "https:no-host",
        "/ok",
        " ./ok",
        "../ok?x",
        "?ok",
        "#ok",
        "HTTPS://example.test/ok",
    ):
        server.must_notify(
            "alice", title=HOSTILE, content=HOSTILE, type=HOSTILE, url=url, image=HOSTILE, icon=HOSTILE
        )
    page = await signed_in(pages, server)
    await expect(rows(page)).to_have_count(14)
    for index in range(14):
        await expect(rows(page).nth(index).get_by_role("heading")).to_have_text(f"Unseen: {HOSTILE}")
        await expect(rows(page).nth(index).locator(".item-text")).to_have_text(HOSTILE)
        await expect(rows(page).nth(index).locator(".type")).to_have_text(HOSTILE)
    links = await page.locator("#list a").evaluate_all("(links) => links.map(({ href }) => href)")
    here = f"{server.url}/?as=alice"
    assert links == [
        "https://example.test/ok",
        f"{here}#ok",
        f"{server.url}/?ok",
        f"{server.url}/ok?x",
        f"{server.url}/ok",
        f"{server.url}/ok",
    ]
    assert await page.evaluate("window.hacked") is None
    assert await page.locator("#list script, #list img").count() == 0


RIGHT_TO_LEFT = """() => {
    const shown = document.querySelectorAll("#list h2, .item-text, .type, .filter-name, .mail-subject");
    return [...shown].map((element) => {
        const text = [...element.childNodes].at(-1), range = document.createRange();
        const left = (index) => {
            range.setStart(text, index);
            range.setEnd(text, index + 1);
            return range.getBoundingClientRect().left;
        };
        return [element.textContent, left(text.length - 1) < left(text.length - 2)];
    });
}"""
"""Texts, and whether the last character of each stands left of the one before."""


async def test_right_to_left(pages: Pages, server: RunningServer) -> None:
    """A text in Hebrew ends at its left, also where it stands below one in English."""
    recipients = ({"id": "alice", "email": "alice@example.test"}, {"id": "bob", "email": "bob@example.test"})
    server.must_notify(
        *recipients, title="שלום!", content="Two lines.\nשתי שורות!", type="הזמנה!", email_send=True
    )
    server.must_notify("alice", title="English!", content="One line.", type="order")
    page = await signed_in(pages, server)
    await expect(page.locator(".mail-subject")).to_have_count(1)
    await expect(page.locator("#filters")).to_be_visible()
    assert dict(await page.evaluate(RIGHT_TO_LEFT)) == {
        **dict.fromkeys(["Unseen: שלום!", "Two lines.\nשתי שורות!", "הזמנה!", "שלום!"], True),
        **dict.fromkeys(["Unseen: English!", "One line.", "order", "All"], False),
    }


async def test_very_long_text(pages: Pages, server: RunningServer) -> None:
    """Does not push all others out of sight: it is scrolled in its place, and can be with the keyboard."""
    server.must_notify("alice", title="before")
    server.must_notify("alice", title="long", content="word " * 10_000)
    page = await signed_in(pages, server)
    await expect(row(page, "before").get_by_role("heading")).to_be_in_viewport()
    text = page.locator(".item-text")
    await row(page, "long").focus()
    await page.keyboard.press("Tab")
    await expect(text).to_be_focused()
    await page.keyboard.press("PageDown")
    await expect(text).not_to_have_js_property("scrollTop", 0)


async def test_paging(pages: Pages, server: RunningServer) -> None:
    """The list begins with a page; further ones come at the press of a button until all are there."""
    for number in range(65):
        server.must_notify("alice", title=f"number {number}")
    page = await signed_in(pages, server)
    await expect(rows(page)).to_have_count(30)
    await expect(page.locator("#badge")).to_have_text("65")
    older = page.get_by_role("button", name="Show older")
    for count in (60, 65):
        await older.click()
        await expect(rows(page)).to_have_count(count)
    await expect(older).to_be_hidden()
    await shows(page, [f"Unseen: number {number}" for number in reversed(range(65))])


async def test_large_badge(pages: Pages, server: RunningServer) -> None:
    """More than ninety-nine unseen are shown as such; the button's name has the number."""
    for _ in range(101):
        server.must_notify("alice", content="x")
    page = await signed_in(pages, server)
    await expect(page.locator("#badge")).to_have_text("99+")
    await expect(page.get_by_role("button", name="Notifications, 101 unseen")).to_be_visible()


async def test_very_many_at_once(pages: Pages, server: RunningServer) -> None:
    """None of them takes a layout of the whole page for itself, which would hold up the page for minutes."""
    page = await signed_in(pages, server)
    protocol = await page.context.new_cdp_session(page)
    await protocol.send("Performance.enable")

    async def layouts() -> int:
        metrics = (await protocol.send("Performance.getMetrics"))["metrics"]
        return next(int(metric["value"]) for metric in metrics if metric["name"] == "LayoutCount")

    before = await layouts()
    items = [{"content": f"number {number}", "users": [{"id": "alice"}]} for number in range(400)]
    json_type = {"Content-Type": "application/json"}
    assert (
        server.request("POST", "/api/v2/notifications", json.dumps(items).encode(), json_type).status == 200
    )
    await expect(rows(page)).to_have_count(400)
    assert await layouts() - before < 300


# -- windows in step -----------------------------------------------------------------------------------------


async def test_two_windows(pages: Pages, server: RunningServer) -> None:
    """What is seen, deleted or all marked in one window is so in the user's other window, and in nobody else's."""
    for title in ("one", "two", "three"):
        server.must_notify("alice", "bob", title=title)
    here, there = await signed_in(pages, server), await signed_in(pages, server)
    other = await signed_in(pages, server, "bob")
    await row(here, "two").get_by_role("button", name="Mark as seen").click()
    for page in (here, there):
        await expect(page.locator("#badge")).to_have_text("2")
        await expect(page.locator("#list > li:not(.unseen)").get_by_role("heading")).to_have_text(
            ["two"], use_inner_text=True
        )
    await row(there, "three").get_by_role("button", name="Delete").click()
    for page in (here, there):
        await shows(page, ["two", "Unseen: one"])
    await here.get_by_role("button", name="Mark all as seen").click()
    for page in (here, there):
        await expect(page.locator("#badge")).to_be_hidden()
        await expect(page.locator(".unseen")).to_have_count(0)
        await expect(page.get_by_role("button", name="Mark all as seen")).to_be_disabled()
    await expect(other.locator("#badge")).to_have_text("3")


async def test_undo(pages: Pages, server: RunningServer) -> None:
    """What was deleted or marked as seen can be taken back at the press of a button, and is back in every window."""
    for title in ("one", "two", "three"):
        server.must_notify("alice", title=title)
    here, there = await signed_in(pages, server), await signed_in(pages, server)
    undo = here.get_by_role("button", name="Undo")
    await row(here, "two").get_by_role("button", name="Delete").click()
    await expect(here.locator("#toast-text")).to_have_text("Deleted")
    await shows(there, ["Unseen: three", "Unseen: one"])
    await undo.click()
    for page in (here, there):
        await shows(page, ["Unseen: three", "Unseen: two", "Unseen: one"])
    await expect(row(here, "two")).to_be_focused()
    await expect(here.locator("#toast")).to_be_hidden()
    await expect(there.locator("#toast")).to_be_hidden()

    await row(here, "one").get_by_role("button", name="Mark as seen").click()
    await shows(there, ["Unseen: three", "Unseen: two", "one"])
    await undo.click()
    await expect(there.locator("#badge")).to_have_text("3")
    await here.get_by_role("button", name="Mark all as seen").click()
    await expect(here.locator("#toast-text")).to_have_text("Marked as seen: 3")
    await expect(there.locator("#badge")).to_be_hidden()
    await undo.click()
    for page in (here, there):
        await shows(page, ["Unseen: three", "Unseen: two", "Unseen: one"])
        await expect(page.locator("#badge")).to_have_text("3")


async def test_undo_of_what_is_not_listed(pages: Pages, server: RunningServer) -> None:
    """Where more were marked as seen than are in the list, the button says how many it brings back."""
    for number in range(32):
        server.must_notify("alice", title=str(number))
    page = await signed_in(pages, server)
    await page.get_by_role("button", name="Mark all as seen").click()
    await expect(page.locator("#toast-text")).to_have_text("Marked as seen: 32")
    await page.get_by_role("button", name="Undo for the 30 listed").click()
    await expect(page.locator("#badge")).to_have_text("30")


async def test_types(pages: Pages, server: RunningServer) -> None:
    """The types can be chosen from, with their counts as they change; each shows its own ones, page by page."""
    for number in range(35):
        server.must_notify("alice", title=f"build {number}", type="build")
    page = await signed_in(pages, server)
    chips = page.locator("#filters button")
    await expect(rows(page)).to_have_count(30)
    await expect(page.locator("#filters")).to_be_hidden()
    server.must_notify("alice", title="hello", type="chat")
    server.must_notify("alice", title="nothing")
    names = ["All 37 37 unseen", "No type 1 1 unseen", "build 35 35 unseen", "chat 1 1 unseen"]
    for name in names:
        await expect(page.get_by_role("button", name=name)).to_have_count(1)
    await expect(chips.first).to_have_attribute("aria-pressed", "true")

    await page.get_by_role("button", name="build 35").click()
    await expect(row(page, "hello")).to_have_count(0)
    await expect(rows(page)).to_have_count(30)
    await page.get_by_role("button", name="Show older").click()
    await shows(page, [f"Unseen: build {number}" for number in reversed(range(35))])
    server.must_notify("alice", title="another", type="chat")
    await page.get_by_role("button", name="chat 2").click()
    await shows(page, ["Unseen: another", "Unseen: hello"])
    await expect(page.get_by_role("button", name="chat 2")).to_have_attribute("aria-pressed", "true")
    await page.get_by_role("button", name="Mark listed as seen").click()
    await expect(page.locator("#badge")).to_have_text("36")
    await expect(page.get_by_role("button", name="chat 2", exact=True)).to_be_visible()

    await row(page, "another").focus()
    await page.keyboard.press("Delete")
    await expect(row(page, "hello")).to_be_focused()
    await page.keyboard.press("Delete")
    await expect(page.get_by_text("Nothing of this type.")).to_be_visible()
    await page.get_by_role("button", name="All 36").click()
    await expect(rows(page)).to_have_count(30)
    await expect(page.get_by_role("button", name="Mark all as seen")).to_be_visible()


async def test_hostile_type(pages: Pages, server: RunningServer) -> None:
    """Also as something to choose a type is the text that it is."""
    server.must_notify("alice", title="one", type=HOSTILE)
    server.must_notify("alice", title="two", type="__proto__")
    page = await signed_in(pages, server)
    await expect(page.locator("#filters .filter-name")).to_have_text(["All", "__proto__", HOSTILE])
    await page.locator("#filters button").nth(2).click()
    await shows(page, ["Unseen: one"])
    assert await page.evaluate("window.hacked") is None
    assert await page.locator("#filters img, #filters script").count() == 0


async def test_two_users(pages: Pages, server: RunningServer) -> None:
    """The second window's link opens the other demo user, and what one sends the other receives."""
    alice = await signed_in(pages, server)
    link = alice.get_by_role("link", name="Second window: bob")
    bob = await signed_in(pages, server, "bob")
    assert await link.get_attribute("href") == "/?as=bob"
    await alice.get_by_label("alice", exact=True).uncheck()
    await alice.get_by_label("bob", exact=True).check()
    await alice.get_by_label("Title").fill("Hello Bob")
    await alice.get_by_role("button", name="Send").click()
    await shows(bob, ["Unseen: Hello Bob"])
    await expect(alice.locator("#send-result")).to_have_text("Stored for bob.")
    await expect(rows(alice)).to_have_count(0)


async def test_restart(pages: Pages, server: RunningServer) -> None:
    """A restart of the server is shown, passes by itself, and what came meanwhile is there."""
    server.must_notify("alice", title="before")
    page = await signed_in(pages, server)
    await page.evaluate("Math.random = () => 3")  # neither too short to be seen nor too long for a test
    server.kill()
    await expect(page.locator("#state-text")).to_contain_text("Offline, next try in")
    await expect(page.get_by_role("button", name="Try now")).to_be_visible()
    await expect(page.locator("[aria-live=polite]")).to_have_text("The connection is lost. Trying again.")
    await expect(rows(page)).to_have_count(1)
    server.start()
    server.must_notify("alice", title="meanwhile")
    await shows(page, ["Unseen: meanwhile", "Unseen: before"])
    await expect(page.locator("#state-text")).to_have_text("Live")
    await expect(page.locator("[aria-live=polite]")).to_have_text(re.compile("Reconnected, 1 new|meanwhile"))
    pages.forgive("ERR_CONNECTION")
    pages.forgive("503")  # while it starts


async def test_what_was_done_without_a_connection(pages: Pages, server: RunningServer) -> None:
    """Is done when it is back, beside what came meanwhile, and can be undone then."""
    server.must_notify("alice", title="before")
    page = await signed_in(pages, server)
    await page.evaluate("Math.random = () => 1e6")  # it will not come back before it is told to
    server.kill()
    await expect(page.get_by_role("button", name="Try now")).to_be_visible()
    await row(page, "before").get_by_role("button", name="Delete").click()
    await expect(page.locator("#toast-text")).to_contain_text("as soon as the connection is back")
    await expect(page.locator("[aria-live=polite]")).to_contain_text("as soon as the connection is back")
    server.start()
    for title in ("one", "two", "three"):
        server.must_notify("alice", title=title)
    await page.get_by_role("button", name="Try now").click()
    await shows(page, ["Unseen: three", "Unseen: two", "Unseen: one"])
    await expect(page.locator("#toast-text")).to_have_text("Deleted")
    await page.get_by_role("button", name="Undo").click()
    await expect(row(page, "before")).to_be_focused()
    pages.forgive("ERR_CONNECTION")
    pages.forgive("503")  # while it starts


async def test_a_try_that_is_not_answered(pages: Pages, server: RunningServer) -> None:
    """While it lasts the page says that it connects, and not that it will."""
    page = await signed_in(pages, server)
    await page.evaluate("Math.random = () => 29.9")
    server.kill()
    await expect(page.locator("#state-text")).to_contain_text("Offline, next try in")
    with socket.create_server(("127.0.0.1", server.port)):
        await page.get_by_role("button", name="Try now").click()
        await expect(page.locator("#state-text")).to_have_text("Connecting")
    pages.forgive("ERR_")


async def test_reconnected(pages: Pages, server: RunningServer) -> None:
    """When the connection is back the page says how many are new, to all."""
    page = await signed_in(pages, server)
    await page.evaluate("Math.random = () => 1e6")
    server.kill()
    await expect(page.get_by_role("button", name="Try now")).to_be_visible()
    server.start()
    for title in ("one", "two", "three"):
        server.must_notify("alice", title=title)
    await page.get_by_role("button", name="Try now").click()
    await expect(page.locator("#toast-text")).to_have_text("Reconnected, 3 new")
    await expect(page.locator("[aria-live=polite]")).to_have_text("Reconnected, 3 new")
    await expect(page.get_by_role("button", name="Undo")).to_be_hidden()
    pages.forgive("ERR_CONNECTION")
    pages.forgive("503")  # while it starts


async def test_fallback_transport(pages: Pages, server: RunningServer) -> None:
    """The page works where WebSockets do not get through."""
    page = await pages.open(f"{server.url}/?as=alice&transport=xhr-polling")
    await expect(page.locator("#state-text")).to_have_text("Live")
    server.must_notify("alice", title="polled")
    await expect(rows(page)).to_have_count(1)


# -- sending -------------------------------------------------------------------------------------------------


async def test_send_all_fields(pages: Pages, server: RunningServer) -> None:
    """The form sends every field of POST /notify, and the mail lies in the mailbox as it was written."""
    page = await signed_in(pages, server)
    for summary in await page.locator(".send summary").all():
        await summary.click()
    await page.get_by_label("Other users").fill("carol, dave <dave@example.test>")
    fields = {
        "title": "Títle",
        "content": "Content ✓",
        "url": "https://example.test/x",
        "type": "kind",
        "icon": "🔔",
        "image": "/example/sample.svg",
        "email_subject": "Súbject",
        "email_content": f"{HOSTILE} ✓",
        "email_type": "text/plain",
        "email_mime": "1.0",
        "apikey": "",
    }
    for name, value in fields.items():
        await page.locator(f"#send-form [name={name}]").fill(value)
    await page.get_by_label("to those who are away").check()
    async with page.expect_request("**/notify") as sent:
        await page.get_by_role("button", name="Send").click()
    body = (await sent.value).post_data_json
    assert body == {
        **{name: value for name, value in fields.items() if value},
        "email_send": True,
        "users": [
            {"id": "alice", "email": "alice@example.test"},
            {"id": "carol"},
            {"id": "dave", "email": "dave@example.test"},
        ],
    }
    await expect(page.locator("#send-result")).to_have_text("Stored for alice, carol, dave.")
    await expect(row(page, "Títle").locator(".type")).to_have_text("kind")

    mail = page.locator("#mails > li")
    await expect(mail).to_have_count(1)
    await expect(mail.locator(".mail-subject")).to_have_text("Súbject")
    await expect(mail.locator(".mail-to")).to_have_text("to dave@example.test")
    await mail.locator("summary").click()
    await expect(mail.locator("pre")).to_have_text(f"{HOSTILE} ✓")
    await expect(mail.locator(".mail-facts")).to_contain_text("text/plain")
    await expect(page.locator("#mailbox-count")).to_have_text("1 mail")


async def test_send_forced_mail(pages: Pages, server: RunningServer) -> None:
    """Mail to everybody reaches also those who are online."""
    page = await signed_in(pages, server)
    await page.get_by_text("Mail", exact=True).last.click()
    await page.get_by_label("to everybody, also those who are online").check()
    await page.get_by_label("Title").fill("Forced")
    await page.get_by_role("button", name="Send").click()
    await expect(page.locator("#mails .mail-to")).to_have_text(["to alice@example.test"])


async def test_send_refused(pages: Pages, server: RunningServer) -> None:
    """What the server refuses is said in its own words; nothing is sent to nobody."""
    page = await signed_in(pages, server)
    await page.get_by_label("alice", exact=True).uncheck()
    await page.get_by_role("button", name="Send").click()
    await expect(page.locator("#send-result")).to_have_text("Choose somebody to send it to.")
    await page.get_by_label("alice", exact=True).check()
    await page.get_by_label("Title").fill("x" * 3000)
    await page.get_by_role("button", name="Send").click()
    await expect(page.locator("#send-result")).to_contain_text("title")
    await expect(page.locator("#send-result")).to_have_class("result error")
    pages.forgive("/notify")


async def test_curl(pages: Pages, server: RunningServer) -> None:
    """The shown command does what the form does, quotes included."""
    page = await signed_in(pages, server)
    await page.get_by_label("Title").fill('It\'s "here" $HOME')
    await page.get_by_text("The same with curl").click()
    command = await page.locator("#curl").inner_text()
    assert f"{server.url}/notify" in command
    process = await asyncio.create_subprocess_exec("sh", "-c", command.replace("curl ", "curl -sSf ", 1))
    assert await process.wait() == 0
    await shows(page, ['Unseen: It\'s "here" $HOME'])


async def test_examples(pages: Pages, server: RunningServer) -> None:
    """An example fills the form, leaves the recipients, and can be sent as it is."""
    page = await signed_in(pages, server)
    for name in ("Build", "Comment", "Picture", "Mail"):
        await page.locator("#presets").get_by_role("button", name=name).click()
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator("#send-result")).to_have_text("Stored for alice.")
        title = await page.get_by_label("Title").input_value()
        await expect(row(page, title)).to_be_visible()
    await expect(rows(page)).to_have_count(4)


# -- for everybody -------------------------------------------------------------------------------------------


async def test_keyboard(pages: Pages, server: RunningServer) -> None:
    """The list can be used with the keyboard alone, and the focus is never lost."""
    for title in ("three", "two", "one"):
        server.must_notify("alice", title=title, url=f"/example/favicon.svg?{title}")
    page = await signed_in(pages, server)
    await page.get_by_role("button", name="Notifications, 3 unseen").focus()
    await page.keyboard.press("Enter")
    await expect(row(page, "one")).to_be_focused()
    await page.keyboard.press("ArrowDown")
    await expect(row(page, "two")).to_be_focused()
    await page.keyboard.press("s")
    await expect(row(page, "two")).not_to_have_class("item unseen")
    await expect(row(page, "two")).to_be_focused()
    await page.keyboard.press("Delete")
    await expect(row(page, "three")).to_be_focused()
    await expect(rows(page)).to_have_count(2)
    await page.keyboard.press("Home")
    await expect(row(page, "one")).to_be_focused()
    await page.keyboard.press("Tab")
    await expect(row(page, "one").get_by_role("link")).to_be_focused()
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(row(page, "one")).not_to_have_class("item unseen")
    await expect(row(page, "one")).to_be_focused()
    await page.keyboard.press("End")
    await page.keyboard.press("Delete")
    await expect(row(page, "one")).to_be_focused()
    await page.keyboard.press("u")
    await expect(row(page, "three")).to_be_focused()
    await page.keyboard.press("u")
    await expect(row(page, "one")).to_have_class("item unseen")
    await page.keyboard.press("End")
    await page.keyboard.press("Delete")
    await expect(rows(page)).to_have_count(1)
    await page.keyboard.press("Delete")
    await expect(page.get_by_text("All quiet.")).to_be_visible()
    await expect(page.locator("#inbox")).to_be_focused()


async def test_long_text_with_the_keyboard(pages: Pages, server: RunningServer) -> None:
    """In a text that is too long for its place the arrows, Home and End scroll; S does what it does elsewhere."""
    for number in range(2):
        server.must_notify("alice", title=f"n{number}", content="word " * 1500)
    page = await signed_in(pages, server)
    text = row(page, "n1").locator(".item-text")
    await row(page, "n1").focus()
    await page.keyboard.press("Tab")
    await expect(text).to_be_focused()
    await page.keyboard.press("ArrowDown")
    await page.wait_for_function("() => document.activeElement.scrollTop > 0")
    await page.keyboard.press("End")
    await page.wait_for_function(
        "() => document.activeElement.scrollTop > document.activeElement.clientHeight"
    )
    await page.keyboard.press("Home")
    await page.wait_for_function("() => document.activeElement.scrollTop === 0")
    await expect(text).to_be_focused()
    await page.keyboard.press("s")
    await expect(row(page, "n1")).not_to_have_class(re.compile("unseen"))


async def test_undo_means_what_was_done_last(pages: Pages, server: RunningServer) -> None:
    """Also if the server has not answered that yet."""
    for title in ("two", "one"):
        server.must_notify("alice", title=title)
    page = await signed_in(pages, server)
    await row(page, "one").focus()
    await page.keyboard.press("s")
    await expect(page.get_by_text("Marked as seen", exact=True)).to_be_visible()
    server.signal(signal.SIGSTOP)
    try:
        await page.keyboard.press("Delete")
        await page.keyboard.press("u")
    finally:
        server.signal(signal.SIGCONT)
    await expect(page.get_by_text("Restored.")).to_be_attached()
    await expect(rows(page)).to_have_count(2)
    await expect(row(page, "one")).to_have_class("item")


async def test_focus_at_show_older(pages: Pages, server: RunningServer) -> None:
    """Showing older ones with the keyboard moves the focus to the first of them; if there are none, to the end."""
    for number in range(61):
        server.must_notify("alice", title=f"number {number:02}")
    page, other = await signed_in(pages, server), await signed_in(pages, server)
    older = page.get_by_role("button", name="Show older")
    await older.press("Enter")
    await expect(rows(page)).to_have_count(60)
    await expect(row(page, "number 30")).to_be_focused()
    for count in (60, 61):
        await other.get_by_role("button", name="Show older").click()
        await expect(rows(other)).to_have_count(count)
    await row(other, "number 00").get_by_role("button", name="Delete").click()
    await expect(page.locator("#badge")).to_have_text("60")
    await older.press("Space")
    await expect(older).to_be_hidden()
    await expect(row(page, "number 01")).to_be_focused()


async def test_focus_at_mark_all(pages: Pages, server: RunningServer) -> None:
    """The button that marks all as seen keeps the focus though it has nothing to do then; pressing it does nothing."""
    server.must_notify("alice", title="one")
    page = await signed_in(pages, server)
    button = page.get_by_role("button", name="Mark all as seen")
    await button.press("Enter")
    await expect(page.locator("#badge")).to_be_hidden()
    await expect(button).to_be_disabled()
    await expect(button).to_be_focused()
    await page.evaluate(
        """async () => {
            const { Notifications } = await import("/client/notifications.js");
            const { seenAll } = Notifications.prototype;
            Notifications.prototype.seenAll = function () {
                window.presses = (window.presses ?? 0) + 1;
                return seenAll.call(this);
            };
        }"""
    )
    await page.keyboard.press("Enter")
    assert await page.evaluate("window.presses") is None
    server.must_notify("alice", title="two")
    await expect(button).to_be_enabled()
    await page.keyboard.press("Enter")
    await expect(page.locator("#badge")).to_be_hidden()
    assert await page.evaluate("window.presses") == 1


async def test_focus_at_send(pages: Pages, server: RunningServer) -> None:
    """The button that sends keeps the focus while it sends, and sends once however often it is pressed."""
    page = await signed_in(pages, server)
    answered, requests = asyncio.Event(), []

    async def hold(route: Route) -> None:
        requests.append(route.request)
        await answered.wait()
        await route.continue_()

    await page.route("**/notify", hold)
    await page.get_by_label("Title").fill("once")
    button = page.get_by_role("button", name="Send")
    async with page.expect_request("**/notify"):
        await button.press("Enter")
    await expect(button).to_be_disabled()
    await expect(button).to_be_focused()
    await page.keyboard.press("Enter")
    answered.set()
    await expect(page.locator("#send-result")).to_have_text("Stored for alice.")
    await expect(button).to_be_enabled()
    await expect(button).to_be_focused()
    await expect(rows(page)).to_have_count(1)
    assert len(requests) == 1


async def test_focus_at_try_now(pages: Pages, server: RunningServer) -> None:
    """The button that tries to connect leaves the focus in the inbox as it goes away."""
    pages.forgive("ERR_CONNECTION")
    page = await signed_in(pages, server)
    await page.evaluate("Math.random = () => 1e6")  # it will not come back before it is told to
    server.kill()
    retry = page.get_by_role("button", name="Try now")
    await retry.focus()
    server.start()
    await page.keyboard.press("Enter")
    await expect(page.locator("#state-text")).to_have_text("Live")
    await expect(retry).to_be_hidden()
    await expect(page.locator("#inbox")).to_be_focused()


async def test_focus_in_the_mailbox(pages: Pages, server: RunningServer) -> None:
    """A mail that is being read keeps the focus when another one comes."""
    page = await signed_in(pages, server)
    carol = {"id": "carol", "email": "carol@example.test"}
    server.must_notify(carol, title="first", email_send=True, email_content="text")
    mails = page.locator("#mails > li")
    await expect(mails).to_have_count(1)
    await mails.locator("summary").press("Enter")
    await mails.locator("pre").focus()
    server.must_notify(carol, title="second", email_send=True)
    await expect(mails.locator(".mail-subject")).to_have_text(["second", "first"])
    await expect(mails.nth(1).locator("pre")).to_be_focused()


async def test_names_and_roles(pages: Pages, server: RunningServer) -> None:
    """Every control has a name, every field a label, and ids are not repeated."""
    server.must_notify("alice", title="one")
    page = await signed_in(pages, server)
    await expect(rows(page)).to_have_count(1)
    unnamed = await page.evaluate(
        """() => [...document.querySelectorAll("button, a, input, textarea")].filter((control) => {
            const text = control.textContent.trim() || control.getAttribute("aria-label")
                || [...(control.labels ?? [])].map(({ textContent }) => textContent).join("");
            return !text;
        }).map(({ outerHTML }) => outerHTML)"""
    )
    assert unnamed == []
    # A name of what has no role is not told.
    assert await page.locator("pre[aria-label]:not([role])").count() == 0
    ids = await page.evaluate("[...document.querySelectorAll('[id]')].map(({ id }) => id)")
    assert len(ids) == len(set(ids))
    assert await page.evaluate("document.documentElement.lang") == "en"
    buttons = row(page, "one").get_by_role("button")
    await expect(buttons.first).to_have_accessible_description("Unseen: one")


CONTRASTS = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = (color) => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
    };
    const ground = (element) => {
        const layers = [];
        for (let e = element; e; e = e.parentElement) {
            const color = rgba(getComputedStyle(e).backgroundColor);
            const image = getComputedStyle(e).backgroundImage.match(/(rgba?|color|oklab)\\([^()]*\\)/);
            if (image) layers.push(rgba(image[0]));
            if (color[3] > 0) layers.push(color);
            if (color[3] === 1) break;
        }
        return layers.reverse().reduce((under, [r, g, b, a]) =>
            [r, g, b].map((c, i) => c * a + under[i] * (1 - a)), [255, 255, 255]);
    };
    const luminance = (rgb) => {
        const [r, g, b] = rgb.map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const found = [], EXEMPT = ".visually-hidden, .skip, :disabled, [aria-disabled=true]";
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest(EXEMPT)) continue;
        const under = ground(element), [r, g, b] = rgba(getComputedStyle(element).color);
        const [light, dark] = [luminance([r, g, b]), luminance(under)].sort((a, b) => b - a);
        found.push([(light + 0.05) / (dark + 0.05), walker.currentNode.data.trim()]);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_contrast(pages: Pages, server: RunningServer, scheme: str) -> None:
    """Each text has a contrast of at least 4.5 to its ground (WCAG 2.2, 1.4.3), light and dark."""
    server.must_notify("alice", title="seen", content="text", type="kind", url="https://example.test/")
    page = await signed_in(pages, server, color_scheme=scheme)
    await page.get_by_role("button", name="Mark all as seen").click()
    await expect(page.locator("#badge")).to_be_hidden()
    server.must_notify("alice", title="unseen", content="text", type="kind", url="https://example.test/")
    await expect(page.locator(".item.unseen")).to_have_count(1)
    server.must_notify("alice", title="other", type="other")
    await expect(page.locator("#filters")).to_be_visible()
    await row(page, "other").get_by_role("button", name="Delete").click()
    await expect(page.get_by_role("button", name="Undo")).to_be_visible()
    await page.locator("#toast").hover()  # it stays
    await expect(page.locator(".item.fresh")).to_have_count(0)
    background = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(background[4:].split(",")[0]) < 128) == (scheme == "dark")
    found = await page.evaluate(CONTRASTS)
    assert len(found) > 30
    assert [text for contrast, text in found if contrast < 4.5] == []


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
async def test_no_sideways_scrolling(pages: Pages, server: RunningServer, width: int) -> None:
    """However narrow the window and however long the words, the page is never wider than it."""
    server.must_notify(
        "alice",
        title="W" * 300,
        content="c" * 900,
        type="t" * 200,
        url=f"https://example.test/{'u' * 500}",
        icon="i" * 99,
    )
    server.must_notify("alice", title="other", type="T" * 200)
    for type_ in ("build", "comment", "photo", "billing", ""):
        server.must_notify("alice", title=f"a {type_}", type=type_)
    viewport = {"width": width, "height": 700}
    page = await signed_in(pages, server, viewport=viewport, is_mobile=width < 700, has_touch=width < 700)
    await expect(rows(page)).to_have_count(7)
    await expect(page.locator("#filters")).to_be_visible()
    await row(page, "other").get_by_role("button", name="Mark as seen").click()
    await expect(page.get_by_role("button", name="Undo")).to_be_visible()
    assert await overflow(page) <= 0
    for summary in await page.locator(".send summary").all():
        await summary.click()
    await page.get_by_label("Title").fill("x" * 500)
    assert await overflow(page) <= 0
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("button", name="Sign in as alice")).to_be_visible()
    assert await overflow(page) <= 0


@pytest.mark.parametrize("width", [320, 360, 560, 1280])
async def test_room_for_the_state(pages: Pages, server: RunningServer, width: int) -> None:
    """However narrow the window, all that is said of a lost connection can be read, and its button be pressed."""
    page = await signed_in(pages, server, viewport={"width": width, "height": 700})
    await page.evaluate("Math.random = () => 29.9")
    server.kill()
    button = page.get_by_role("button", name="Try now")
    await expect(button).to_be_visible()
    await expect(page.locator("#state-text")).to_contain_text("30 s")
    assert await overflow(page) <= 0
    cut_off = """() => [...document.querySelectorAll(".bar-inner *")].filter((each) => {
        const { left, right, width } = each.getBoundingClientRect();
        const bar = each.closest(".bar-inner").getBoundingClientRect();
        return width && !each.closest("svg, .badge") && (left < bar.left || right > bar.right);
    }).map(({ outerHTML }) => outerHTML)"""
    assert await page.evaluate(cut_off) == []
    is_on_top = """(button) => {
        const { left, right, top, bottom } = button.getBoundingClientRect();
        return [left + 1, right - 1].every((x) => document.elementFromPoint(x, (top + bottom) / 2) === button);
    }"""
    assert await button.evaluate(is_on_top)
    pages.forgive("ERR_CONNECTION")


async def test_fields_that_open_keep_apart(pages: Pages, server: RunningServer) -> None:
    """As far as those that are always there."""
    page = await signed_in(pages, server)
    for summary in await page.locator(".send summary").all():
        await summary.click()
    gaps = """() => [...document.querySelectorAll(".send details > * + *")]
        .filter(({ offsetHeight }) => offsetHeight)
        .map((each) => each.getBoundingClientRect().top - each.previousElementSibling.getBoundingClientRect().bottom)"""
    found = await page.evaluate(gaps)
    assert len(found) == 9
    assert min(found) >= 8


async def test_reduced_motion(pages: Pages, server: RunningServer) -> None:
    """Nothing moves for those who asked for that."""
    page = await signed_in(pages, server, reduced_motion="reduce")
    server.must_notify("alice", title="one")
    await expect(rows(page)).to_have_count(1)
    assert await page.evaluate("document.getAnimations().length") == 0


async def test_forced_colors(pages: Pages, server: RunningServer) -> None:
    """Where the system's few colours are all there are, one still sees what is a button, chosen or unseen."""
    for type_ in ("order", "news"):
        server.must_notify("alice", title=type_, type=type_)
    page = await signed_in(pages, server, forced_colors="active")
    await expect(rows(page)).to_have_count(2)
    await row(page, "order").get_by_role("button", name="Mark as seen").click()
    await expect(row(page, "order")).not_to_have_class(re.compile("unseen"))
    style = "([selector, what, part]) => getComputedStyle(document.querySelector(selector), part)[what]"

    async def looks(selector: str, what: str, part: str | None = None) -> str:
        found: str = await page.evaluate(style, [selector, what, part])
        return found

    assert await looks("#send-button", "borderTopWidth") == "1px"
    assert await looks(".filter[aria-pressed=true]", "borderTopWidth") == "2px"
    assert await looks(".filter[aria-pressed=false]", "borderTopWidth") == "1px"
    ground = await looks("body", "backgroundColor")
    assert await looks(".item.unseen", "backgroundColor", "::before") != ground


async def test_headings(pages: Pages, server: RunningServer) -> None:
    """No level is left out, by which users of a screen reader find their way."""
    server.must_notify("alice", title="hello")
    page = await signed_in(pages, server)
    await expect(rows(page)).to_have_count(1)
    found = """[...document.querySelectorAll("#app :is(h1, h2, h3, h4)")]
        .map((each) => `${each.tagName} ${each.textContent}`)"""
    headings = ["H1 Inbox", "H2 Unseen: hello", "H2 Send a notification", "H2 Demo mailbox"]
    assert await page.evaluate(found) == headings


async def test_all_from_here(pages: Pages, server: RunningServer) -> None:
    """The page loads nothing from elsewhere, and no script or style stands in it."""
    hosts: set[str] = set()
    page = await pages.open("about:blank")
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    await page.goto(f"{server.url}/?as=alice")
    await expect(page.locator("#state-text")).to_have_text("Live")
    assert hosts == {f"127.0.0.1:{server.port}"}
    assert await page.locator("script:not([src]), style, [style], [onclick]").count() == 0
