"""Tests of server/users.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.auth import Proof
from server.callers import Caller
from server.credentials import CredentialCache
from server.passwords import PasswordChecks
from server.users import DEMO_USERS, ConfigUsers, DemoUsers
from tests.support.passwords import Checking, cheap_hash
from tests.support.recording import ELSEWHERE, LOCAL

SECRET = "carol's sécret"
CAROL = cheap_hash(SECRET)


@pytest.fixture
def checks() -> Iterator[PasswordChecks]:
    checks = PasswordChecks(workers=2, max_waiting=100, cache=CredentialCache(300, 100))
    yield checks
    checks.close()


@pytest.fixture
def checking(monkeypatch: pytest.MonkeyPatch) -> Checking:
    return Checking(monkeypatch)


# -- users of config.ini -------------------------------------------------------------------------------------
@pytest.mark.parametrize("caller", [LOCAL, ELSEWHERE])
async def test_a_configured_user_is_taken_from_anywhere(checks: PasswordChecks, caller: Caller) -> None:
    """By name and password; the name is the id."""
    users = ConfigUsers({"carol": CAROL}, checks)
    [key_id] = users.key_ids
    assert await users.check_password("carol", SECRET, caller) == Proof("carol", key_id=key_id)


@pytest.mark.parametrize(
    ("login", "password"),
    [("carol", "wrong"), ("carol", "carol"), ("Carol", SECRET), ("dave", SECRET), ("dave", "dave")],
)
async def test_nobody_else_is(checks: PasswordChecks, login: str, password: str) -> None:
    """An unknown login with another's password neither."""
    assert await ConfigUsers({"carol": CAROL}, checks).check_password(login, password, LOCAL) is None


async def test_an_unknown_login_costs_as_much_as_a_known_one(
    checks: PasswordChecks, checking: Checking
) -> None:
    """A hash of the same price is verified either way, however often the password comes: the time of an answer tells
    nothing."""
    users = ConfigUsers({"carol": CAROL}, checks)
    for login in ("carol", "dave"):
        for _ in range(2):
            assert await users.check_password(login, "wrong", LOCAL) is None
    assert checking.checks == [CAROL] * 4


async def test_where_prices_differ_those_of_unknown_logins_do(
    checks: PasswordChecks, checking: Checking
) -> None:
    """A login costs what it cost before, however it is capitalised: no price is that of the known or of the unknown."""
    hashes = {f"user-{number}": cheap_hash(str(number)) for number in range(3)}
    users = ConfigUsers(hashes, checks)
    for number in range(30):
        for login in (f"nobody-{number}", f"NOBODY-{number}"):
            assert await users.check_password(login, "wrong", LOCAL) is None
    assert checking.checks[::2] == checking.checks[1::2]
    assert set(checking.checks) == set(hashes.values())


async def test_without_any_users_nobody_is_taken_and_nothing_verified(
    checks: PasswordChecks, checking: Checking
) -> None:
    """Where users are all elsewhere, this method costs them nothing."""
    for password in ("", "nobody"):
        assert await ConfigUsers({}, checks).check_password("nobody", password, LOCAL) is None
    assert not checking.checks


async def test_users_can_be_replaced(checks: PasswordChecks, checking: Checking) -> None:
    """A changed password counts at once, who is gone is gone, who is as before is still remembered."""
    dave, erin = cheap_hash("dave's"), cheap_hash("erin's")
    users = ConfigUsers({"carol": CAROL, "dave": dave, "erin": erin}, checks)
    for login, password in [("carol", SECRET), ("dave", "dave's"), ("erin", "erin's")]:
        assert await users.check_password(login, password, LOCAL)
    changed = cheap_hash("another")
    users.replace({"carol": changed, "dave": dave})
    checking.checks.clear()
    assert await users.check_password("carol", SECRET, LOCAL) is None
    assert await users.check_password("carol", "another", LOCAL)
    assert await users.check_password("dave", "dave's", LOCAL)
    assert await users.check_password("erin", "erin's", LOCAL) is None
    *real, for_nobody = checking.checks
    assert real == [changed, changed]
    assert for_nobody in (changed, dave)
    users.replace({"carol": CAROL, "dave": dave})
    checking.checks.clear()
    assert await users.check_password("carol", SECRET, LOCAL)
    assert checking.checks == [CAROL], "what was remembered of the changed user is gone"


def test_a_password_is_known_by_user_and_tenant(checks: PasswordChecks) -> None:
    """Who is as before still has it; nothing of it can be read."""
    users = ConfigUsers({"carol": CAROL, "dave": CAROL}, checks, "acme")
    before = users.key_ids
    assert len(before) == 2 and not any(CAROL in each for each in before)
    users.replace({"carol": cheap_hash("another"), "dave": CAROL}, "acme")
    assert len(users.key_ids) == 2 and len(users.key_ids & before) == 1
    users.replace({"carol": CAROL, "dave": CAROL}, "acme")
    assert users.key_ids == before
    users.replace({"carol": CAROL, "dave": CAROL}, "other")
    assert users.key_ids.isdisjoint(before)


# -- demo users ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("login", DEMO_USERS)
async def test_a_demo_users_password_is_the_name(
    checks: PasswordChecks, checking: Checking, login: str
) -> None:
    """For callers on this machine, at no price."""
    assert await DemoUsers(ConfigUsers({}, checks)).check_password(login, login, LOCAL) == Proof(login)
    assert not checking.checks


@pytest.mark.parametrize(
    ("caller", "login", "password"),
    [
        (ELSEWHERE, "alice", "alice"),
        (LOCAL, "alice", "bob"),
        (LOCAL, "alice", "älice"),
        (LOCAL, "alice", ""),
        (LOCAL, "carol", "carol"),
    ],
)
async def test_a_demo_user_is_refused_otherwise(
    checks: PasswordChecks, caller: Caller, login: str, password: str
) -> None:
    """From elsewhere, or with another password; and there are no others."""
    assert await DemoUsers(ConfigUsers({}, checks)).check_password(login, password, caller) is None


async def test_a_configured_user_replaces_the_demo_user_of_that_name(checks: PasswordChecks) -> None:
    """Whoever writes `alice` into config.ini has closed that door, also while the server runs."""
    users = ConfigUsers({"alice": CAROL}, checks)
    demo = DemoUsers(users)
    assert await demo.check_password("alice", "alice", LOCAL) is None
    assert await demo.check_password("bob", "bob", LOCAL)
    users.replace({"bob": CAROL})
    assert await demo.check_password("alice", "alice", LOCAL)
    assert await demo.check_password("bob", "bob", LOCAL) is None
