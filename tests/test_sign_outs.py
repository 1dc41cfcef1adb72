"""Tests of server/sign_outs.py: on a real file, with what others write into it. How a node follows them is in
test_tenants.py."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from server import sign_outs as sign_outs_module
from server.errors import StoreUnavailable
from server.grants import SignOut
from server.messages import now
from server.sign_outs import KEPT, SignOuts
from server.store import Directory
from server.store.sqlite import SQLiteStore
from server.store.sqlite_schema import to_ms
from tests.support.core import FragileStore
from tests.support.stores import read_sign_outs

AT = now()


def signed_out(user_id: str, seconds: float = 0, tenant: str = "acme") -> SignOut:
    return SignOut(tenant, user_id, AT + timedelta(seconds=seconds))


@dataclass
class Node:
    """What a node knows, and was told; and the file that it knows it from."""

    path: Path
    directory: FragileStore
    at: datetime = AT
    told: list[Sequence[SignOut]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sign_outs = SignOuts(
            lambda: cast("Directory", self.directory), self.told.append, lambda: self.at
        )

    async def store(self, *sign_outs: SignOut) -> None:
        """Somebody else signs them out."""
        for each in sign_outs:
            await self.directory.sign_out(each.tenant, each.user_id, each.at)

    def store_as_before(self, each: SignOut) -> None:
        """As a process of the version does that knew no log."""
        with contextlib.closing(sqlite3.connect(self.path)) as connection, connection:
            row = (each.tenant, each.user_id, to_ms(each.at))
            connection.execute("INSERT INTO sign_outs VALUES (?, ?, ?)", row)

    async def goes_over(self) -> None:
        """Return when it has gone over all of them."""
        await self.sign_outs._go_over()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """Not opened."""
    path = tmp_path / "notifications.sqlite3"
    store = SQLiteStore(path)
    await store.open()
    yield Node(path, FragileStore(cast("SQLiteStore", store.directory)))
    await store.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_outs_module, "GO_OVER_EVERY_S", 0.0)
    monkeypatch.setattr(sign_outs_module, "PAUSE_S", 0.0)


# -- what is known -------------------------------------------------------------------------------------------
def test_only_what_is_new_is_told(node: Node) -> None:
    """The last of each user counts."""
    sign_outs = node.sign_outs
    sign_outs.take([signed_out("alice", 5), signed_out("bob")])
    sign_outs.take([signed_out("alice", 5), signed_out("bob", 1), signed_out("alice", 2)])
    sign_outs.take([signed_out("alice", 5)])
    assert node.told == [[signed_out("alice", 5), signed_out("bob")], [signed_out("bob", 1)]]
    assert sign_outs.at("acme", "alice") == AT + timedelta(seconds=5)
    assert sign_outs.at("acme", "bob") == AT + timedelta(seconds=1)
    assert sign_outs.at("other", "bob") is None
    assert len(sign_outs) == 2


def test_what_is_too_old_counts_no_more(node: Node) -> None:
    """Nobody is told of it."""
    node.at = AT + KEPT + timedelta(seconds=1)
    node.sign_outs.take([signed_out("alice"), signed_out("bob", 1)])
    assert node.told == [[signed_out("bob", 1)]]


def test_one_by_a_clock_that_is_ahead_says_nothing_of_the_next(node: Node) -> None:
    """By ours it counts as of when it was heard of; one whose time has come, as of that."""
    node.sign_outs.take([signed_out("alice", 60)])
    assert node.sign_outs.at("acme", "alice", by_own_clock=True) == AT
    node.at = AT + timedelta(seconds=120)
    node.sign_outs.take([signed_out("alice", 90)])
    assert node.sign_outs.at("acme", "alice", by_own_clock=True) == AT + timedelta(seconds=90)


def test_tenants_that_end_or_begin(node: Node) -> None:
    """Nothing is known of them, as before; nor is anything left of those whose time is yet to come."""
    for tenant in ("acme", "other", "third"):
        node.sign_outs.take([signed_out("alice", tenant=tenant), signed_out("bob", 60, tenant=tenant)])
    node.sign_outs.drop(begun=["acme", "new"], ended=["other"])
    assert [node.sign_outs.at(each, "alice") for each in ("acme", "other", "third", "new")] == [
        None,
        None,
        AT,
        None,
    ]
    assert list(node.sign_outs._heard_at) == ["third"]


# -- reading -------------------------------------------------------------------------------------------------
async def test_opening_reads_all_in_portions(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that were written before there was a log."""
    monkeypatch.setattr(sign_outs_module, "PORTION", 10)
    await node.store(*(signed_out(f"user-{number}") for number in range(25)))
    node.store_as_before(signed_out("before"))
    await node.sign_outs.open(25)
    assert node.directory.rows == [10, 10, 6]
    assert len(node.sign_outs) == 26
    assert node.sign_outs.sequence == 25


async def test_new_ones_are_read_in_portions(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number counts when the last one has been read; those that were known are not read again."""
    monkeypatch.setattr(sign_outs_module, "PORTION", 10)
    await node.store(*(signed_out(f"user-{number}") for number in range(30)))
    await node.sign_outs.open(30)
    node.directory.rows.clear()
    await node.store(*(signed_out(f"user-{number}", 1) for number in range(12)))
    await node.sign_outs.read_new(42)
    assert node.sign_outs.sequence != 42
    await node.sign_outs.read_new(42)
    assert node.sign_outs.sequence == 42
    assert node.directory.rows == [10, 2]
    assert len(node.sign_outs) == 30


async def test_what_cannot_be_read_is_not_passed_over(node: Node) -> None:
    """The next reading begins at the same place."""
    await node.sign_outs.open(0)
    await node.store(signed_out("alice"))
    node.directory.goes_away()
    with pytest.raises(StoreUnavailable):
        await node.sign_outs.read_new(1)
    assert node.sign_outs.sequence == 0
    node.directory.is_back()
    await node.sign_outs.read_new(1)
    assert node.sign_outs.at("acme", "alice") == AT


# -- going over them -----------------------------------------------------------------------------------------
async def test_old_ones_leave_store_and_memory(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens may not be older than the others."""
    monkeypatch.setattr(sign_outs_module, "PORTION", 10)
    old = [signed_out(f"user-{number}") for number in range(25)]
    await node.store(*old, signed_out("gone", tenant="other"), signed_out("alice", 2))
    await node.sign_outs.open(27)
    assert len(node.sign_outs) == 27
    node.at = AT + KEPT + timedelta(seconds=1)
    node.directory.rows.clear()
    await node.goes_over()
    assert len(node.sign_outs) == 1
    assert node.sign_outs.at("acme", "alice") is not None
    assert node.sign_outs._at.keys() == {"acme"}
    assert (await read_sign_outs(cast("Directory", node.directory)))[0] == [signed_out("alice", 2)]


async def test_what_was_missed_is_found(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reading the new ones cannot see, such as what an earlier version writes into the file."""
    monkeypatch.setattr(sign_outs_module, "PORTION", 10)
    await node.store(*(signed_out(f"user-{number}") for number in range(25)))
    await node.sign_outs.open(25)
    node.store_as_before(signed_out("alice"))
    await node.sign_outs.read_new(25)
    assert node.sign_outs.at("acme", "alice") is None
    node.told.clear()
    node.directory.rows.clear()
    await node.goes_over()
    assert node.told == [[signed_out("alice")]]
    assert max(node.directory.rows) == 10


async def test_those_of_a_tenant_that_begins_are_read_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: one of its users may have been signed out before this node heard of it."""
    monkeypatch.setattr(sign_outs_module, "GO_OVER_EVERY_S", 3600.0)
    await node.store(signed_out("alice"))
    await node.sign_outs.open(1)
    task = asyncio.create_task(node.sign_outs.run())
    node.sign_outs.drop(begun=["acme"], ended=[])
    assert node.sign_outs.at("acme", "alice") is None
    async with asyncio.timeout(30):
        while node.sign_outs.at("acme", "alice") != AT:  # noqa: ASYNC110  # it is written down, not told of
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


async def test_a_tenant_that_ends_while_old_ones_are_forgotten(node: Node) -> None:
    """Takes nothing from the next one of its name."""
    node.sign_outs.take([signed_out("alice")])
    node.at = AT + KEPT + timedelta(seconds=1)
    forgetting = asyncio.create_task(node.sign_outs._forget(node.at - KEPT))
    await asyncio.sleep(0)
    node.sign_outs.drop(begun=[], ended=["acme"])
    late = SignOut("acme", "alice", node.at)
    node.sign_outs.take([late])
    await forgetting
    assert node.sign_outs.at("acme", "alice") == late.at


async def test_going_over_survives_what_goes_wrong(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """A store that is away is nothing to tell of here, a bug is; the next round comes in any case."""
    caplog.set_level(logging.DEBUG)
    task = asyncio.create_task(node.sign_outs.run())
    async with asyncio.timeout(30):
        node.directory.goes_away()
        await node.directory.failed.get()
        node.directory.failure = ValueError("a bug")
        while node.directory.failed.qsize() < 3:  # noqa: ASYNC110  # failures are counted
            await asyncio.sleep(0)
    node.directory.is_back()
    gate = node.directory.hold("sign_outs")
    await gate.reached()
    task.cancel()
    await asyncio.wait([task])
    levels = {record.levelno for record in caplog.records if record.name == sign_outs_module.__name__}
    assert levels == {logging.DEBUG, logging.ERROR}
