"""Who may do what, as a node knows it: on a real file that another process changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from pydispatch import dispatcher

from server import sign_outs as sign_outs_module
from server import tasks as tasks_module
from server import tenants as tenants_module
from server.bus import ACCESS_CHANGED, USERS_SIGNED_OUT
from server.errors import StoreUnavailable
from server.grants import (
    ALL_SCOPES,
    DEFAULT_TENANT,
    ApiKey,
    Keep,
    Scope,
    SignOut,
    Tenant,
    hash_secret,
    new_secret,
)
from server.ids import new_id
from server.messages import now
from server.rooms import SignIn
from server.store import STEP, Directory
from server.store.sqlite import SQLiteStore
from server.store.sqlite_beside import SQLiteBeside
from server.tasks import Tasks
from server.tenants import Tenants
from server.wire import REVOKED, SIGNED_OUT, TOKEN_EXPIRED, CloseReason
from tests.support.core import FragileStore
from tests.support.stores import read_sign_outs

SECOND = timedelta(seconds=1)
ALICE = (DEFAULT_TENANT, "alice")


class Clock:
    """Says when it is, until a test sets it."""

    def __init__(self) -> None:
        self.at: datetime | None = None

    def __call__(self) -> datetime:
        return self.at or now()


@dataclass
class Node:
    """Tenants that follow a store, which may be told to fail; and the way into that store for somebody else."""

    tenants: Tenants
    directory: FragileStore
    other: Directory
    clock: Clock
    changes: asyncio.Queue[None]
    signed_out: asyncio.Queue[Sequence[SignOut]]

    async def changed(self) -> None:
        """Return when it has noticed a change of tenants, keys or secrets."""
        async with asyncio.timeout(30):
            await self.changes.get()

    async def told_of(self, count: int = 1) -> list[SignOut]:
        """The next sign-outs that it tells of, so many."""
        told: list[SignOut] = []
        async with asyncio.timeout(30):
            while len(told) < count:
                told += await self.signed_out.get()
        return told

    async def looks(self) -> None:
        """Return after a look for changes that began after this call."""
        calls = self.directory.calls
        begun = calls.count("sequences")
        async with asyncio.timeout(30):
            while calls.count("sequences") < begun + 2:  # noqa: ASYNC110  # calls are counted, not told of
                await asyncio.sleep(0)

    async def add_key(
        self, name: str = "ci", tenant: str = DEFAULT_TENANT, expires_at: datetime | None = None
    ) -> tuple[ApiKey, str]:
        """Somebody else adds a key; it and its secret."""
        key, secret = make_key(name, tenant, expires_at)
        await self.other.add_key(key)
        return key, secret


def make_key(name: str, tenant: str, expires_at: datetime | None = None) -> tuple[ApiKey, str]:
    secret = new_secret()
    scopes = frozenset({Scope.PUBLISH})
    return ApiKey(new_id(), tenant, name, hash_secret(secret), scopes, now(), expires_at), secret


async def add_tenant(directory: Directory, name: str, at: datetime | None = None) -> str:
    """The secret of its key. `at`: when it began."""
    secret = new_secret()
    key = ApiKey(new_id(), name, "first", hash_secret(secret), ALL_SCOPES, now())
    await directory.add_tenant(Tenant(name, at or now()), key)
    return secret


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants_module, "POLL_S", 0.01)


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[None]:
    """While it follows the changes."""
    tasks = Tasks()
    node.tenants.start(tasks)
    try:
        yield
    finally:
        await tasks.cancel()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """Opened, and not yet following."""
    path = tmp_path / "data" / "notifications.sqlite3"
    store, beside, clock = SQLiteStore(path), SQLiteBeside(path), Clock()
    await store.open()
    await beside.open()
    directory = FragileStore(cast("SQLiteStore", store.directory))
    tenants = Tenants(lambda: cast("Directory", directory), clock)
    changes: asyncio.Queue[None] = asyncio.Queue()
    signed_out: asyncio.Queue[Sequence[SignOut]] = asyncio.Queue()

    def note(tenants: Tenants) -> None:
        changes.put_nowait(None)

    def note_sign_outs(tenants: Tenants, sign_outs: Sequence[SignOut]) -> None:
        signed_out.put_nowait(sign_outs)

    await tenants.open()
    dispatcher.connect(note, ACCESS_CHANGED, sender=tenants)
    dispatcher.connect(note_sign_outs, USERS_SIGNED_OUT, sender=tenants)
    try:
        yield Node(tenants, directory, beside.directory, clock, changes, signed_out)
    finally:
        dispatcher.disconnect(note, ACCESS_CHANGED, sender=tenants)
        dispatcher.disconnect(note_sign_outs, USERS_SIGNED_OUT, sender=tenants)
        await beside.close()
        await store.close()


# -- what is known -------------------------------------------------------------------------------------------
async def test_a_new_store_has_one_tenant_and_one_secret(node: Node) -> None:
    """And no key: nothing to guess."""
    tenants = node.tenants
    assert tenants.is_active(DEFAULT_TENANT)
    assert not tenants.is_active("acme")
    assert not tenants.has_keys
    assert tenants.find_key(new_secret()) is None
    assert len(tenants.secrets) == 1


def test_before_it_is_open_nobody_is_known() -> None:
    """Who asks too early is refused, not let in."""

    def no_directory() -> Directory:
        raise AssertionError("asked for")

    tenants = Tenants(no_directory)
    assert not tenants.is_active(DEFAULT_TENANT)
    assert tenants.find_key(new_secret()) is None
    assert tenants.why_over(ALICE, SignIn(now())) is REVOKED


async def test_opening_without_a_store_fails(node: Node) -> None:
    """Nothing can be checked without it."""
    node.directory.goes_away()
    with pytest.raises(StoreUnavailable):
        await Tenants(lambda: cast("Directory", node.directory)).open()


async def test_a_key_ends_by_itself(node: Node) -> None:
    """At its instant, without anybody changing anything; until then it is found by its secret and by its id."""
    at = now()
    key, secret = await node.add_key(expires_at=at + SECOND)
    async with running(node):
        await node.changed()
    node.clock.at = at
    tenants = node.tenants
    assert tenants.find_key(secret) == key
    assert tenants.has_key(key.id)
    assert tenants.key_expires_at(key.id) == at + SECOND
    node.clock.at = at + SECOND
    assert tenants.find_key(secret) is None
    assert not tenants.has_key(key.id)
    assert tenants.key_expires_at(new_id()) is None


async def test_the_secret_opens_not_the_hash(node: Node) -> None:
    """Who reads the store has no key."""
    key, _ = await node.add_key()
    async with running(node):
        await node.changed()
    assert node.tenants.find_key(key.hashed) is None


# -- changes of others ---------------------------------------------------------------------------------------
async def test_what_another_process_changes_is_seen(node: Node) -> None:
    """A tenant, a key, a revocation, a sign-out, a secret, a removal: each is told of, and counts then."""
    tenants, other = node.tenants, node.other
    async with running(node):
        secret = await add_tenant(other, "acme")
        await node.changed()
        assert tenants.is_active("acme")
        first = tenants.find_key(secret)
        assert first is not None
        assert (first.tenant, first.name) == ("acme", "first")
        _, another = await node.add_key("ci", "acme")
        await node.changed()
        assert tenants.find_key(another) is not None
        await other.revoke_key("acme", "ci", now())
        await node.changed()
        assert tenants.find_key(another) is None
        at = now()
        await other.sign_out("acme", "alice", at)
        assert await node.told_of() == [SignOut("acme", "alice", at)]
        assert tenants.signed_out_at("acme", "alice") == at
        assert tenants.signed_out_at(DEFAULT_TENANT, "alice") is None
        await other.remove_tenant("acme", now())
        await node.changed()
        assert not tenants.is_active("acme")
        assert tenants.find_key(secret) is None
        assert not tenants.has_key(first.id)


async def test_nothing_is_read_where_nothing_has_changed(node: Node) -> None:
    """Only the sequences are asked for."""
    node.directory.calls.clear()
    async with running(node):
        for _ in range(3):
            await node.looks()
    assert set(node.directory.calls) == {"sequences"}
    assert node.changes.empty()


async def test_everything_is_read_again_now_and_then(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the sequence says that nothing has changed: a crash may have come between the two."""
    monkeypatch.setattr(tenants_module, "READ_ANYWAY_S", 0.0)
    gate = node.directory.hold("access")
    async with running(node):
        await gate.reached()
        gate.open()
        gate = node.directory.hold("sign_outs")
        await gate.reached()
    assert node.changes.empty()
    assert node.signed_out.empty()


async def test_while_the_store_is_away_what_was_known_holds(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once; when the store is back, what was missed is caught up with."""
    _, secret = await node.add_key()
    async with running(node):
        await node.changed()
        node.directory.goes_away()
        for _ in range(3):
            await failed(node)
        assert node.tenants.find_key(secret) is not None
        assert node.tenants.is_active(DEFAULT_TENANT)
        await node.other.revoke_key(DEFAULT_TENANT, "ci", now())
        await failed(node)
        assert node.tenants.find_key(secret) is not None
        node.directory.is_back()
        await node.changed()
        assert node.tenants.find_key(secret) is None
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.levelno for record in warnings] == [logging.WARNING]
    assert "cannot be followed" in warnings[0].message


async def test_a_bug_in_one_round_does_not_end_the_others(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with its traceback."""
    async with running(node):
        node.directory.failure = ValueError("a bug")
        await failed(node)
        node.directory.is_back()
        await add_tenant(node.other, "acme")
        await node.changed()
    assert any(record.exc_info for record in caplog.records)
    assert node.tenants.is_active("acme")


async def failed(node: Node) -> None:
    """Return when a verb has failed."""
    async with asyncio.timeout(30):
        await node.directory.failed.get()


# -- signing out ---------------------------------------------------------------------------------------------
async def test_a_sign_out_ends_our_tokens_though_the_tenant_began_by_a_clock_that_was_ahead(
    node: Node,
) -> None:
    """Tokens are dated after it, and so after the sign-out; the next ones are later."""
    [secret, *_] = node.tenants.secrets
    node.clock.at = now() - timedelta(minutes=5)
    began_at = node.tenants.voided_at(*ALICE)
    assert began_at is not None and began_at > node.clock.at
    token = SignIn(began_at + STEP, None, secret.id)
    assert node.tenants.why_over(ALICE, token) is None
    await node.tenants.sign_out(*ALICE)
    assert node.tenants.why_over(ALICE, token) is SIGNED_OUT
    voided_at = node.tenants.voided_at(*ALICE)
    assert voided_at is not None
    assert node.tenants.why_over(ALICE, SignIn(voided_at + STEP, None, secret.id)) is None


async def test_signing_out_counts_here_when_it_returns(node: Node) -> None:
    """Without waiting for a look at the store; and it is stored."""
    await node.tenants.sign_out(*ALICE)
    at = node.tenants.signed_out_at(*ALICE)
    assert at is not None
    [sign_out], _ = await read_sign_outs(node.other)
    assert ((sign_out.tenant, sign_out.user_id), sign_out.at) == (ALICE, at)
    assert node.signed_out.get_nowait() == [sign_out]


async def test_signing_out_reads_nothing(node: Node) -> None:
    """However many there are at once, and however many there were before."""
    for number in range(50):
        await node.tenants.sign_out(DEFAULT_TENANT, f"user-{number}")
    node.directory.calls.clear()
    await asyncio.gather(*(node.tenants.sign_out(DEFAULT_TENANT, f"user-{number}") for number in range(80)))
    assert node.directory.calls == ["sign_out"] * 80


async def test_only_new_sign_outs_are_read(node: Node) -> None:
    """Nothing else is, and who was told of is not told of again."""
    for number in range(50):
        await node.tenants.sign_out(DEFAULT_TENANT, f"user-{number}")
    assert len(await node.told_of(50)) == 50
    async with running(node):
        await node.looks()
        node.directory.calls.clear()
        rows = node.directory.rows
        rows.clear()
        await node.other.sign_out("acme", "alice", now())
        await node.told_of()
        await node.looks()
    assert rows == [1]
    assert "access" not in node.directory.calls
    assert node.signed_out.empty()
    assert node.changes.empty()


async def test_a_revocation_does_not_wait_for_many_sign_outs(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read in portions, and between two of them it is asked what else has changed."""
    monkeypatch.setattr(sign_outs_module, "PORTION", 10)
    for number in range(95):
        await node.other.sign_out("acme", f"user-{number}", now())
    node.directory.calls.clear()
    async with running(node):
        assert len(await node.told_of(95)) == 95
        await node.looks()
    assert node.directory.calls[:21] == ["sequences", "sign_outs"] * 10 + ["sequences"]


async def test_sign_outs_are_told_of_while_the_store_is_back(node: Node) -> None:
    """What was missed while it was away is caught up with."""
    async with running(node):
        node.directory.goes_away()
        await failed(node)
        await node.other.sign_out(*ALICE, now())
        await failed(node)
        assert node.tenants.signed_out_at(*ALICE) is None
        node.directory.is_back()
        assert [each.user_id for each in await node.told_of()] == ["alice"]


async def test_sign_outs_end_with_their_tenant(node: Node) -> None:
    """The next tenant of its name has its own only."""
    await add_tenant(node.other, "acme")
    async with running(node):
        await node.changed()
        await node.other.sign_out("acme", "alice", now())
        await node.told_of()
        await node.other.remove_tenant("acme", now())
        await node.changed()
        assert node.tenants.signed_out_at("acme", "alice") is None
        await node.other.erase_tenant("acme", 100)
        await add_tenant(node.other, "acme")
        await node.changed()
        await node.other.sign_out("acme", "bob", now())
        assert [each.user_id for each in await node.told_of()] == ["bob"]
        assert node.tenants.signed_out_at("acme", "alice") is None


async def test_sign_outs_stay_when_their_tenant_is_changed(node: Node) -> None:
    """Its times of retention are no reason to let anybody in again, not even until all sign-outs have been read."""
    await add_tenant(node.other, "acme")
    async with running(node):
        await node.changed()
        await node.other.sign_out("acme", "alice", now())
        [told] = await node.told_of()
        node.directory.hold("sign_outs")
        await node.other.set_keep("acme", Keep(documents_s=30 * 86400))
        await node.changed()
        assert [each.keep.documents_s for each in node.tenants.active if each.name == "acme"] == [30 * 86400]
        assert node.tenants.signed_out_at("acme", "alice") == told.at


async def test_signing_out_without_a_store_fails(node: Node) -> None:
    """Nobody is told of what may be forgotten."""
    node.directory.goes_away()
    with pytest.raises(StoreUnavailable):
        await node.tenants.sign_out(*ALICE)


# -- clocks that differ --------------------------------------------------------------------------------------
async def test_a_sign_out_by_a_clock_that_is_ahead(node: Node) -> None:
    """Ends what was proved before this node heard of it, and nothing after: who comes back is in."""
    ahead = timedelta(minutes=5)
    before = node.clock.at = now()
    async with running(node):
        await node.other.sign_out(*ALICE, before + ahead)
        await node.told_of()
        after = before + timedelta(milliseconds=1)
        for proved_at, reason in ((before, SIGNED_OUT), (after, None)):
            assert node.tenants.why_over(ALICE, SignIn(proved_at, by_own_clock=True)) is reason
        # A token's time may be of that same clock.
        assert node.tenants.why_over(ALICE, SignIn(after)) is SIGNED_OUT
        # Whoever signs out next means all that came before.
        node.clock.at = before + SECOND
        await node.other.sign_out(*ALICE, before + SECOND)
        await node.told_of()
        assert node.tenants.why_over(ALICE, SignIn(after, by_own_clock=True)) is SIGNED_OUT
        node.clock.at = before + 2 * SECOND
        inside = SignIn(before + 2 * SECOND, by_own_clock=True)
        assert node.tenants.why_over(ALICE, inside) is None
        await node.tenants.sign_out(*ALICE)
        assert node.tenants.why_over(ALICE, inside) is SIGNED_OUT
        token_at = node.tenants.signed_out_at(*ALICE)
        assert token_at is not None and token_at > before + ahead
        assert node.tenants.why_over(ALICE, SignIn(token_at + SECOND / 1000)) is None


# -- why somebody may be here no longer ----------------------------------------------------------------------
AT = now()
BEGAN = AT - 5 * SECOND


@pytest.mark.parametrize(
    ("room", "sign_in", "reason"),
    [
        (("acme", "alice"), SignIn(AT), None),
        (("acme", "alice"), SignIn(AT, "good"), None),
        (("acme", "alice"), SignIn(AT, "revoked"), REVOKED),
        (("acme", "alice"), SignIn(AT, "ended"), REVOKED),
        (("acme", "alice"), SignIn(AT, "unknown"), REVOKED),
        (("gone", "alice"), SignIn(AT), REVOKED),
        (("nobody", "alice"), SignIn(AT), REVOKED),
        (("acme", "bob"), SignIn(AT - SECOND), SIGNED_OUT),
        (("acme", "bob"), SignIn(AT), SIGNED_OUT),
        (("acme", "bob"), SignIn(AT + timedelta(milliseconds=1)), None),
        (("acme", "bob"), SignIn(AT - SECOND, "revoked"), REVOKED),
        (("acme", "alice"), SignIn(AT, "good", "kept"), None),
        (("acme", "alice"), SignIn(BEGAN, None, "kept"), SIGNED_OUT),
        (("acme", "alice"), SignIn(BEGAN + timedelta(milliseconds=1), None, "kept"), None),
        (("acme", "alice"), SignIn(BEGAN), None),
        (("acme", "alice"), SignIn(AT, "good", "voided"), TOKEN_EXPIRED),
        (("acme", "alice"), SignIn(AT, "revoked", "voided"), REVOKED),
        ((DEFAULT_TENANT, "bob"), SignIn(AT - SECOND), None),
    ],
)
async def test_why_somebody_may_be_here_no_longer(
    node: Node, room: tuple[str, str], sign_in: SignIn, reason: CloseReason | None
) -> None:
    """The tenant is gone, the key of the token opens nothing, what signed it is void, we gave it to a user of another
    tenant of that name, or the user was signed out since."""
    for name in ("acme", "gone"):
        await add_tenant(node.other, name, BEGAN)
    await node.other.remove_tenant("gone", now())
    keys = {
        name: (await node.add_key(name, "acme", AT + SECOND if name == "ended" else None))[0].id
        for name in ("good", "revoked", "ended")
    }
    await node.other.revoke_key("acme", "revoked", now())
    await node.other.sign_out("acme", "bob", AT)
    async with running(node):
        await node.changed()
        await node.told_of()
    node.clock.at = AT + SECOND
    key_id = sign_in.key_id and keys.get(sign_in.key_id, new_id())
    [kept] = node.tenants.secrets
    secret_id = kept.id if sign_in.secret_id == "kept" else sign_in.secret_id
    assert node.tenants.why_over(room, SignIn(sign_in.proved_at, key_id, secret_id)) is reason


# -- what was used -------------------------------------------------------------------------------------------
async def test_the_use_of_keys_and_the_joins_of_users_are_written_down(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Now and then, by itself; no server reads anything anew because of it."""
    monkeypatch.setattr(tenants_module, "WRITE_USE_S", 0.0)
    _, secret = await node.add_key()
    async with running(node):
        await node.changed()
        used_at = node.clock.at = now()
        assert node.tenants.find_key(secret)
        node.tenants.note_user(*ALICE)
        gate = node.directory.hold("note_users")
        await gate.reached()
        gate.open()
    [key] = await node.other.keys()
    assert key.last_used_at == used_at
    [user] = await node.other.users(DEFAULT_TENANT, after=None, limit=10)
    assert (user.user_id, user.last_seen_at) == ("alice", used_at)
    assert node.changes.empty()


async def test_a_wrong_key_is_not_used(node: Node) -> None:
    """Nor is one that has ended."""
    at = now()
    _, secret = await node.add_key(expires_at=at + SECOND)
    async with running(node):
        await node.changed()
    node.clock.at = at + SECOND
    assert node.tenants.find_key(secret) is None
    await node.tenants.write_down()
    assert (await node.other.keys())[0].last_used_at is None


async def test_nothing_used_is_forgotten_while_the_store_is_away(node: Node) -> None:
    """What could not be written is written later; what came in between, with it."""
    _, secret = await node.add_key()
    async with running(node):
        await node.changed()
    node.clock.at = now()
    assert node.tenants.find_key(secret)
    node.tenants.note_user(*ALICE)
    node.directory.goes_away()
    with pytest.raises(StoreUnavailable):
        await node.tenants.write_down()
    node.clock.at += SECOND
    node.tenants.note_user(*ALICE)
    node.tenants.note_user(DEFAULT_TENANT, "bob")
    node.directory.is_back()
    await node.tenants.write_down()
    users = await node.other.users(DEFAULT_TENANT, after=None, limit=10)
    assert {user.user_id: user.last_seen_at for user in users} == {
        "alice": node.clock.at,
        "bob": node.clock.at,
    }
    [key] = await node.other.keys()
    assert key.last_used_at == node.clock.at - SECOND


async def test_users_of_a_removed_tenant_are_not_written_down(node: Node) -> None:
    """Else they would be there after it was erased, and belong to the next tenant of its name."""
    await add_tenant(node.other, "acme")
    async with running(node):
        await node.changed()
        node.tenants.note_user("acme", "alice")
        node.tenants.note_user(*ALICE)
        await node.other.remove_tenant("acme", now())
        await node.changed()
    await node.tenants.write_down()
    assert await node.other.users("acme", after=None, limit=10) == []
    assert len(await node.other.users(DEFAULT_TENANT, after=None, limit=10)) == 1


async def test_writing_down_nothing_asks_nothing(node: Node) -> None:
    """A quiet server writes nothing."""
    node.directory.calls.clear()
    await node.tenants.write_down()
    assert node.directory.calls == []


async def test_who_waits_for_it_is_written_down(node: Node) -> None:
    """Many at once in a few writes; who joins during one is in the next."""
    gate = node.directory.hold("note_users")
    node.tenants.note_user(*ALICE)
    first = asyncio.create_task(node.tenants.write_user(*ALICE))
    await gate.reached()
    late = [(DEFAULT_TENANT, f"user{number}") for number in range(20)]
    for user in late:
        node.tenants.note_user(*user)
    others = [asyncio.create_task(node.tenants.write_user(*user)) for user in late]
    for _ in range(100):
        await asyncio.sleep(0)
    assert not any(other.done() for other in (first, *others))
    node.directory.calls.clear()
    gate.open()
    await asyncio.gather(first, *others)
    assert node.directory.calls == ["note_users"]
    users = await node.other.users(DEFAULT_TENANT, after=None, limit=30)
    assert {user.user_id for user in users} == {"alice", *(user_id for _, user_id in late)}


async def test_who_is_written_down_already_waits_for_nothing(node: Node) -> None:
    """Also if others are to be written, or the store is away; who is not, hears that it is."""
    node.tenants.note_user(*ALICE)
    await node.tenants.write_user(*ALICE)
    node.tenants.note_user(DEFAULT_TENANT, "bob")
    node.directory.goes_away()
    await node.tenants.write_user(*ALICE)
    with pytest.raises(StoreUnavailable):
        await node.tenants.write_user(DEFAULT_TENANT, "bob")
    node.directory.is_back()
    await node.tenants.write_user(DEFAULT_TENANT, "bob")
    assert len(await node.other.users(DEFAULT_TENANT, after=None, limit=10)) == 2


async def test_who_shared_a_write_that_failed_is_written_down_by_the_next(node: Node) -> None:
    """None of them is taken for written, nor forgotten."""
    users = [(DEFAULT_TENANT, f"user{number}") for number in range(20)]
    for user in users:
        node.tenants.note_user(*user)
    node.directory.goes_away()
    writes = [node.tenants.write_user(*user) for user in users]
    for outcome in await asyncio.gather(*writes, return_exceptions=True):
        assert isinstance(outcome, StoreUnavailable)
    assert await node.other.users(DEFAULT_TENANT, after=None, limit=30) == []
    node.directory.is_back()
    await node.tenants.write_user(*users[-1])
    assert len(await node.other.users(DEFAULT_TENANT, after=None, limit=30)) == 20


async def test_no_join_is_being_written_down_any_more_at_the_end(node: Node) -> None:
    """Though whoever waited for it is gone."""
    gate = node.directory.hold("note_users")
    node.tenants.note_user(*ALICE)
    before = asyncio.all_tasks()
    waiting = asyncio.create_task(node.tenants.write_user(*ALICE))
    await gate.reached()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert asyncio.all_tasks() - before
    await node.tenants.close(0.01)
    assert asyncio.all_tasks() <= before


async def test_a_flood_of_joins_is_bounded(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """More users than can be noted are noted at their next join."""
    monkeypatch.setattr(tenants_module, "MAX_NOTED", 2)
    for user in ("alice", "bob", "carol"):
        node.tenants.note_user(DEFAULT_TENANT, user)
    await node.tenants.write_down()
    node.tenants.note_user(DEFAULT_TENANT, "carol")
    await node.tenants.write_down()
    users = await node.other.users(DEFAULT_TENANT, after=None, limit=10)
    assert [user.user_id for user in users] == ["alice", "bob", "carol"]


async def test_it_ends_though_a_cancellation_gets_lost(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does that comes in the same turn as the answer of the store."""
    is_looking, go_on = asyncio.Event(), asyncio.Event()

    async def look(*, anyway: bool) -> bool:
        if is_looking.is_set():
            await go_on.wait()
        is_looking.set()
        with suppress(asyncio.CancelledError):
            await go_on.wait()
        return False

    monkeypatch.setattr(node.tenants, "_read_changes", look)
    monkeypatch.setattr(tasks_module, "CANCEL_AGAIN_S", 0.01)
    tasks = Tasks()
    node.tenants.start(tasks)
    await is_looking.wait()
    async with asyncio.timeout(30):
        await tasks.cancel()
    assert not tasks
