"""Tests of server/auth.py."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from server.auth import DEFAULT_TENANT, DEMO_USERS, Authenticator, Identity, PasswordChecks, hash_password
from server.errors import BadCredentials, Busy
from tests.support.recording import ELSEWHERE, LOCAL

CAROL = hash_password("carol's sécret")


@pytest.fixture
def checks() -> Iterator[PasswordChecks]:
    checks = PasswordChecks(workers=1, max_waiting=1)
    yield checks
    checks.close()


class Slowly:
    """Holds up the verifying until it is let go."""

    def __init__(self, checks: PasswordChecks, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_begun = threading.Event()
        self.go_on = threading.Event()
        self.threads: list[str] = []
        verify = checks._verify

        def slowly(hashed: str, password: str) -> bool:
            self.threads.append(threading.current_thread().name)
            self.has_begun.set()
            assert self.go_on.wait(30)
            return verify(hashed, password)

        monkeypatch.setattr(checks, "_verify", slowly)


# -- passwords -----------------------------------------------------------------------------------------------
async def test_a_password_matches_its_own_hash_only(checks: PasswordChecks) -> None:
    """Argon2id, salted: the same password hashes differently each time."""
    assert CAROL.startswith("$argon2id$")
    assert hash_password("carol's sécret") != CAROL
    assert await checks.verify(CAROL, "carol's sécret")
    assert not await checks.verify(CAROL, "carol's secret")
    assert not await checks.verify(CAROL, "")


@pytest.mark.parametrize("hashed", ["", "carol", "$argon2id$v=19$m=65536,t=3,p=4$broken"])
async def test_what_is_no_hash_matches_nothing(checks: PasswordChecks, hashed: str) -> None:
    """A spoiled entry lets nobody in, and is nobody's error."""
    assert not await checks.verify(hashed, hashed)


async def test_verifying_leaves_the_loop_free_and_its_queue_is_bounded(
    checks: PasswordChecks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One runs in a thread of its own, one waits, the third is refused at once; later there is room again."""
    slowly = Slowly(checks, monkeypatch)
    running = asyncio.ensure_future(checks.verify(CAROL, "carol's sécret"))
    waiting = asyncio.ensure_future(checks.verify(CAROL, "wrong"))
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await checks.verify(CAROL, "carol's sécret")
    slowly.go_on.set()
    assert [await running, await waiting] == [True, False]
    assert await checks.verify(CAROL, "carol's sécret")
    assert all(name.startswith("password") for name in slowly.threads)


async def test_close_begins_no_further_check(checks: PasswordChecks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that runs ends by itself; the one that waits never begins."""
    slowly = Slowly(checks, monkeypatch)
    running = asyncio.ensure_future(checks.verify(CAROL, "carol's sécret"))
    waiting = asyncio.ensure_future(checks.verify(CAROL, "carol's sécret"))
    assert await asyncio.to_thread(slowly.has_begun.wait, 30)
    checks.close()
    slowly.go_on.set()
    assert await running
    with pytest.raises(asyncio.CancelledError):
        await waiting


# -- users ---------------------------------------------------------------------------------------------------
def _authenticator(checks: PasswordChecks, *, has_demo: bool = True, **users: str) -> Authenticator:
    return Authenticator(users or {"carol": CAROL}, has_demo, checks)


async def test_a_configured_user_is_let_in_from_anywhere(checks: PasswordChecks) -> None:
    """By name and password, in DEBUG and RELEASE."""
    for has_demo in (True, False):
        for caller in (LOCAL, ELSEWHERE):
            authenticator = _authenticator(checks, has_demo=has_demo)
            identity = await authenticator.authenticate("carol", "carol's sécret", caller)
            assert identity == Identity(DEFAULT_TENANT, "carol")


@pytest.mark.parametrize(
    ("login", "password"),
    [
        ("carol", "wrong"),
        ("carol", "carol"),
        ("Carol", "carol's sécret"),
        ("dave", "carol's sécret"),
        ("dave", "dave"),
    ],
)
async def test_all_else_is_refused_in_the_same_words(
    checks: PasswordChecks, login: str, password: str
) -> None:
    """Nobody learns whether the login exists; an unknown one with another's password is not let in."""
    with pytest.raises(BadCredentials) as caught:
        await _authenticator(checks).authenticate(login, password, LOCAL)
    assert str(caught.value) == str(BadCredentials())


@pytest.mark.parametrize("login", DEMO_USERS)
async def test_a_demo_users_password_is_the_name(checks: PasswordChecks, login: str) -> None:
    """For callers on this machine, while there is a demo."""
    identity = await _authenticator(checks).authenticate(login, login, LOCAL)
    assert identity == Identity(DEFAULT_TENANT, login)


@pytest.mark.parametrize(
    ("has_demo", "caller", "password"),
    [(False, LOCAL, "alice"), (True, ELSEWHERE, "alice"), (True, LOCAL, "bob"), (True, LOCAL, "älice")],
    ids=["no demo", "elsewhere", "another's name", "not ascii"],
)
async def test_a_demo_user_is_refused_otherwise(
    checks: PasswordChecks, has_demo: bool, caller: object, password: str
) -> None:
    """In RELEASE, from elsewhere, or with another password."""
    authenticator = _authenticator(checks, has_demo=has_demo)
    with pytest.raises(BadCredentials):
        await authenticator.authenticate("alice", password, caller)  # type: ignore[arg-type]


async def test_a_configured_user_replaces_the_demo_user_of_that_name(checks: PasswordChecks) -> None:
    """Whoever writes `alice` into config.ini has closed that door."""
    authenticator = _authenticator(checks, alice=CAROL)
    assert await authenticator.authenticate("alice", "carol's sécret", LOCAL)
    with pytest.raises(BadCredentials):
        await authenticator.authenticate("alice", "alice", LOCAL)


async def test_without_any_users_nobody_is_let_in(checks: PasswordChecks) -> None:
    """Not with an empty password either."""
    authenticator = Authenticator({}, has_demo=False, checks=checks)
    for password in ("", "nobody"):
        with pytest.raises(BadCredentials):
            await authenticator.authenticate("nobody", password, LOCAL)


async def test_an_unknown_login_costs_as_much_as_a_known_one(
    checks: PasswordChecks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hash is verified either way: the time of an answer tells nothing."""
    slowly = Slowly(checks, monkeypatch)
    slowly.go_on.set()
    for login in ("carol", "dave"):
        with pytest.raises(BadCredentials):
            await _authenticator(checks).authenticate(login, "wrong", LOCAL)
    assert len(slowly.threads) == 2


async def test_too_many_sign_ins_at_once_are_told_to_try_again(
    checks: PasswordChecks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for unknown logins: guessing is what fills the queue."""
    slowly, authenticator = Slowly(checks, monkeypatch), _authenticator(checks)
    guesses = [asyncio.ensure_future(authenticator.authenticate("dave", "guess", LOCAL)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await authenticator.authenticate("carol", "carol's sécret", LOCAL)
    slowly.go_on.set()
    assert all(
        isinstance(each, BadCredentials) for each in await asyncio.gather(*guesses, return_exceptions=True)
    )
