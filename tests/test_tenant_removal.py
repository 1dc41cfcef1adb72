"""Removing a tenant from a running server, and erasing it: it is gone at once and as a whole, and nobody else is
touched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.backends import Backend, add_tenant, known
from tests.support.client import SocketClient
from tests.support.client_v2 import client_v2
from tests.support.command import STORES
from tests.support.feeds import SECRET
from tests.support.house import contents, inbox, joined, open_house
from tests.support.leftovers import leftovers
from tests.support.processes import wait_until
from tests.support.sockjs_clients import DOORS

LAST = "the last one"


@pytest.mark.parametrize("kind", STORES)
async def test_removing_a_tenant_touches_no_other(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    """Its connections end, its key opens nothing, and nothing is left of it when it is erased; a busy neighbour misses
    nothing, and keeps its connections."""
    with open_house(kind, request, tmp_path) as house:
        server, token = house.server, house.a.token("alice")
        for backend in house.tenants:
            backend.must_notify(
                "alice", "bob", content=f"of {backend.tenant}", title=f"only {backend.tenant}"
            )
        kept = await inbox(house.default, "alice")
        async with AsyncExitStack() as stack:
            ending = [await stack.enter_async_context(joined(house.a, "alice", door)) for door in DOORS]
            staying = [await stack.enter_async_context(joined(house.b, "alice", door)) for door in DOORS]
            by_password = await stack.enter_async_context(SocketClient(server))
            await by_password.join("alice")
            # All the while: who does not read what there is, is slow, and closed.
            reading = [asyncio.create_task(read_to_the_last(client)) for client in staying]
            async with busily(house.b, house.a) as sent:
                remove = ("tenant", "remove", "a", "--yes", "--erase")
                removing = asyncio.create_task(asyncio.to_thread(server.must_run, *remove))
                for client in ending:
                    assert await client.closed(within_s=5) == (3500, "revoked")
                assert (house.a.notify("alice").status, house.a.make_token("alice").status) == (400, 403)
                async with SocketClient(server) as client:
                    refusal = await client.refusal("join", {"token": token})
                assert refusal == {"code": "bad_credentials", "message": "the token is wrong"}
                erased = await removing
            assert erased["erased_documents"] >= 2
            assert len(sent) > 1
            house.b.must_notify("alice", content=LAST)
            sent.append(LAST)
            for each in reading:
                assert await each == sent
            house.default.must_notify("alice", content="the end")
            assert contents(await by_password.next("notification")) == ["the end"]
        assert contents(await inbox_of_all(house.b, "alice")) == [*reversed(sent), "of b"]
        assert (await inbox(house.default, "alice"))[1:] == kept
        users = server.must_run("user", "known", "--tenant", "b")
        assert [each["user_id"] for each in users] == ["alice", "bob"]
        assert leftovers(house.store, server.data, "a", "of a", "only a", "late") == []
        assert leftovers(house.store, server.data, "of b") != []


async def read_to_the_last(client: SocketClient) -> list[str]:
    """The contents of what is pushed, up to `LAST`."""
    told: list[str] = []
    while LAST not in told:
        told += contents(await client.next("notification"))
    return told


@asynccontextmanager
async def busily(backend: Backend, other: Backend) -> AsyncIterator[list[str]]:
    """Meanwhile the backend notifies alice again and again, of which the contents are noted; so does the other one, for
    as long as it may."""
    sent: list[str] = []
    is_over = False

    async def publish() -> None:
        while not is_over:
            content = f"number {len(sent)}"
            assert (await asyncio.to_thread(backend.notify, "alice", content=content)).status == 200
            sent.append(content)
            await asyncio.to_thread(other.notify, "alice", "late", content="late")

    task = asyncio.create_task(publish())
    try:
        yield sent
    finally:
        is_over = True
        await task


async def inbox_of_all(backend: Backend, user: str) -> list[dict[str, Any]]:
    """As `inbox`, however many there are."""
    documents: list[dict[str, Any]] = []
    async with joined(backend, user) as client:
        while some := await client.content(before=documents[-1]["_id"] if documents else None, limit=100):
            documents += some
    return documents


@pytest.mark.parametrize("kind", STORES)
async def test_who_takes_an_erased_name_finds_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    """Not even the users who had just joined, whom the server had not written down yet; nor does the old key open the
    new one's doors, or what the server gave the old one's users."""
    with open_house(kind, request, tmp_path, NOTIFY_JWT_SECRET=SECRET) as house:
        server = house.server

        def known_users(tenant: str) -> list[str]:
            return [each["user_id"] for each in server.must_run("user", "known", "--tenant", tenant)]

        async with joined(house.b, "first"):
            # What is noted from here on is not written down before some seconds.
            await asyncio.to_thread(
                wait_until, lambda: known_users("b") == ["first"], "it being written down"
            )
        old = house.a.token("alice")
        async with client_v2(server, "alice", tenant="a") as client:
            ticket = client.ticket
            await client.join(ticket=ticket)
        async with joined(house.a, "alice") as client, joined(house.b, "last"):
            await asyncio.to_thread(server.must_run, "tenant", "remove", "a", "--yes", "--erase")
            assert await client.closed() == (3500, "revoked")
        await asyncio.to_thread(wait_until, lambda: "last" in known_users("b"), "all being written down")
        assert leftovers(house.store, server.data, "a", "alice") == []
        again = known(add_tenant(server, "a"))
        assert known_users("a") == []
        assert house.a.make_token("alice").status == 403
        async with SocketClient(server) as client:
            assert (await client.refusal("join", {"token": old}))["code"] == "bad_credentials"
            assert await client.join_by_token(again.token("alice")) == []
        async with client_v2(server) as client:
            refused = await client.refusal("join", {"v": 2, "ticket": ticket})
            assert refused["code"] == "bad_credentials"
        async with client_v2(server, "alice", tenant="a") as client:
            await client.join(ticket=client.ticket)
