"""Tests of server/passwords.py."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from collections.abc import Iterator

import argon2
import bcrypt
import pytest

from server.credentials import CredentialCache
from server.errors import Busy
from server.passwords import DECOY, PasswordChecks, hash_password, is_hash, matches
from tests.support.clock import Clock
from tests.support.passwords import Checking, cheap_hash

SECRET = "carol's sécret"
CAROL = cheap_hash(SECRET)


def _bcrypt(password: str, prefix: str = "2b") -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", f"${prefix}$")


def _django(password: str, iterations: int = 1000, salt: str = "Salt1") -> str:
    """As `PBKDF2PasswordHasher.encode` of Django does."""
    made = hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), iterations)
    return f"pbkdf2_sha256${iterations}${salt}${base64.b64encode(made).decode()}"


@pytest.fixture
def checks() -> Iterator[PasswordChecks]:
    checks = PasswordChecks(workers=1, max_waiting=1)
    yield checks
    checks.close()


@pytest.fixture
def checking(monkeypatch: pytest.MonkeyPatch) -> Checking:
    return Checking(monkeypatch)


# -- hashes --------------------------------------------------------------------------------------------------
def test_a_new_hash_is_argon2id_and_salted() -> None:
    """The same password hashes differently each time, and matches each of its hashes."""
    hashed, again = hash_password(SECRET), hash_password(SECRET)
    assert hashed.startswith("$argon2id$")
    assert hashed != again
    assert matches(hashed, SECRET)
    assert matches(again, SECRET)


@pytest.mark.parametrize(
    "hashed",
    [
        CAROL,
        argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1, type=argon2.Type.I).hash(SECRET),
        *(_bcrypt(SECRET, prefix) for prefix in ("2a", "2b", "2y")),
        _django(SECRET),
    ],
    ids=["argon2id", "argon2i", "bcrypt 2a", "bcrypt 2b", "bcrypt 2y", "django"],
)
def test_a_password_matches_its_own_hash_only(hashed: str) -> None:
    """Of each kind; by one letter, by nothing, or by the hash itself nobody gets in."""
    assert matches(hashed, SECRET)
    for wrong in ("carol's secret", SECRET + " ", SECRET[:-1], "", hashed):
        assert not matches(hashed, wrong)


def test_a_hash_of_django_is_taken() -> None:
    """One of the tests of Django itself, password `lètmein`."""
    hashed = "pbkdf2_sha256$1500000$seasalt$P4UiMPVduVWIL/oS1GzH+IofsccjJNM5hUTikBvi5to="
    assert matches(hashed, "lètmein")


def test_a_hash_of_php_is_taken() -> None:
    """Of `crypt` (its manual's example, password `rasmuslerdorf`), as `password_hash` writes it: `$2y$`."""
    assert matches("$2y$07$usesomesillystringfore2uDLvp1Ii2e./U9C8sBjqp8I90dH6hi", "rasmuslerdorf")


def test_bcrypt_never_takes_more_than_it_looks_at() -> None:
    """A password of 72 bytes is right, and with anything behind it wrong, though bcrypt would see no difference; in
    bytes, not letters."""
    longest = "é" * 36
    hashed = _bcrypt(longest)
    assert matches(hashed, longest)
    for longer in (longest + "x", longest * 2):
        assert not matches(hashed, longer)


def test_a_password_too_long_for_bcrypt_takes_as_long_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash is verified all the same: the time of an answer does not tell who has such a hash."""
    verified: list[bool] = []
    checkpw = bcrypt.checkpw

    def watched(password: bytes, hashed: bytes) -> bool:
        verified.append(checkpw(password, hashed))
        return verified[-1]

    hashed = _bcrypt("x" * 72)
    monkeypatch.setattr(bcrypt, "checkpw", watched)
    assert not matches(hashed, "x" * 73)
    assert verified == [True]


@pytest.mark.parametrize(
    "hashed",
    [
        "",
        "carol",
        "$argon2",
        "$argon2id$v=19$m=65536,t=3,p=4$broken",
        "$argon2id$v=19$m=65536,t=3,p=4$é$é",
        CAROL[:-1],
        CAROL + "A",
        "$2b$",
        "$2b$04$short",
        "$2x$" + _bcrypt(SECRET)[4:],
        "$2b$99$" + _bcrypt(SECRET)[7:],
        "$2b$03$" + _bcrypt(SECRET)[7:],
        _bcrypt(SECRET) + "\n",
        "pbkdf2_sha256$",
        _django(SECRET).replace("$1000$", "$-1000$"),
        _django(SECRET).replace("$1000$", "$0$"),
        _django(SECRET).replace("$1000$", "$1_000$"),
        _django(SECRET).replace("$Salt1$", "$$"),
        _django(SECRET)[:-1],
        _django(SECRET).replace("sha256", "sha1"),
        hashlib.md5(SECRET.encode()).hexdigest(),  # noqa: S324 - as an old table may hold it
        SECRET,
    ],
    ids=lambda value: None if isinstance(value, str) and len(value) < 12 else "",
)
def test_what_is_no_hash_matches_nothing(hashed: str) -> None:
    """A spoiled entry lets nobody in, and is nobody's error; a table with plain passwords lets nobody in, too."""
    assert not matches(hashed, SECRET)
    assert not matches(hashed, hashed)


@pytest.mark.parametrize(
    ("kind", "hashed"),
    [
        ("argon2", "$argon2id$v=19$m=4194304,t=3,p=4$" + "A" * 22 + "$" + "A" * 43),
        ("argon2", "$argon2id$v=19$m=65536,t=4294967295,p=4$" + "A" * 22 + "$" + "A" * 43),
        ("argon2", "$argon2id$v=19$m=65536,t=3,p=1000$" + "A" * 22 + "$" + "A" * 43),
        ("bcrypt", "$2b$31$" + _bcrypt(SECRET)[7:]),
        ("pbkdf2_sha256", _django(SECRET).replace("$1000$", "$999999999$")),
    ],
    ids=lambda value: None if isinstance(value, str) and len(value) < 12 else "",
)
def test_a_hash_that_asks_for_hours_is_not_verified(
    kind: str, hashed: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever writes it into the table occupies no thread; the operator is told of the kind, not the hash. (Verified,
    any of them would take far more than what the test may.)"""
    with caplog.at_level(logging.WARNING, "server.passwords"):
        assert not matches(hashed, SECRET)
    [record] = caplog.records
    assert kind in record.getMessage()
    assert hashed not in record.getMessage()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!",
        "plain",
        "$argon2id$",
        "$2b$",
        "pbkdf2_sha256$",
        "$2b$17$" + "a" * 53,
        DECOY.replace("65536", "9999999"),
    ],
)
def test_what_is_no_hash_to_work_on(text: str) -> None:
    """It would be found wrong at once, and stand in for none."""
    assert not is_hash(text)
    assert not matches(text, "x")


@pytest.mark.parametrize(
    "text",
    [DECOY, CAROL, _bcrypt(SECRET), _bcrypt(SECRET, "2y"), _django(SECRET)],
    ids=["decoy", "argon2", "2b", "2y", "django"],
)
def test_what_is_a_hash_to_work_on(text: str) -> None:
    """Of each kind."""
    assert is_hash(text)


def test_the_decoy_costs_as_much_as_a_new_hash() -> None:
    """The parameters are those of `hash_password`: else the time of an answer told who exists."""
    assert argon2.extract_parameters(DECOY) == argon2.extract_parameters(hash_password(""))
    assert not matches(DECOY, "")


# -- threads -------------------------------------------------------------------------------------------------
async def test_verifying_leaves_the_loop_free_and_its_queue_is_bounded(
    checks: PasswordChecks, checking: Checking
) -> None:
    """One runs in a thread of its own, one waits, the third is refused at once; later there is room again."""
    checking.hold()
    running = asyncio.ensure_future(checks.verify(CAROL, SECRET))
    await checking.began()
    waiting = asyncio.ensure_future(checks.verify(CAROL, "wrong"))
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await checks.verify(CAROL, SECRET)
    checking.go_on()
    assert [await running, await waiting] == [True, False]
    assert await checks.verify(CAROL, SECRET)
    assert all(name.startswith("password") for name in checking.threads)


async def test_the_loop_goes_on_while_real_checks_run(checks: PasswordChecks) -> None:
    """A check of full price is under way, and the loop turns on and on: verifying lets go of the interpreter,
    too."""
    hashed = hash_password(SECRET)
    check = asyncio.ensure_future(checks.verify(hashed, SECRET))
    turns = 0
    while not check.done():
        await asyncio.sleep(0)
        turns += 1
    assert await check
    assert turns > 10


async def test_close_begins_no_further_check(checks: PasswordChecks, checking: Checking) -> None:
    """The one that runs ends by itself; the one that waits never begins."""
    checking.hold()
    running = asyncio.ensure_future(checks.verify(CAROL, SECRET))
    await checking.began()
    waiting = asyncio.ensure_future(checks.verify(CAROL, SECRET))
    await asyncio.sleep(0)
    checks.close()
    checking.go_on()
    assert await running
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(checking.checks) == 1


# -- remembering ---------------------------------------------------------------------------------------------
@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def remembering(clock: Clock) -> Iterator[PasswordChecks]:
    checks = PasswordChecks(workers=2, max_waiting=100, cache=CredentialCache(300, 100, clock))
    yield checks
    checks.close()


async def test_a_right_password_is_checked_once(
    remembering: PasswordChecks, checking: Checking, clock: Clock
) -> None:
    """Until it is too long ago; each user's own."""
    for _ in range(3):
        assert await remembering.verify(CAROL, SECRET, user_id="carol")
    clock.now += 299
    assert await remembering.verify(CAROL, SECRET, user_id="carol")
    assert len(checking.checks) == 1
    clock.now += 1
    assert await remembering.verify(CAROL, SECRET, user_id="carol")
    assert len(checking.checks) == 2


async def test_a_wrong_password_is_never_remembered(remembering: PasswordChecks, checking: Checking) -> None:
    """Each try costs a check, also of a user whose right one is remembered."""
    assert await remembering.verify(CAROL, SECRET, user_id="carol")
    for _ in range(3):
        assert not await remembering.verify(CAROL, "wrong", user_id="carol")
    assert len(checking.checks) == 4


async def test_a_changed_password_is_never_served_from_memory(
    remembering: PasswordChecks, checking: Checking
) -> None:
    """What is remembered is of that very hash: with a new one the old password is wrong at once."""
    assert await remembering.verify(CAROL, SECRET, user_id="carol")
    changed = cheap_hash("another")
    assert not await remembering.verify(changed, SECRET, user_id="carol")
    assert await remembering.verify(changed, "another", user_id="carol")
    assert len(checking.checks) == 3


async def test_who_is_forgotten_is_checked_anew(remembering: PasswordChecks, checking: Checking) -> None:
    """They alone."""
    dave = cheap_hash("dave's")
    for _ in range(2):
        assert await remembering.verify(CAROL, SECRET, user_id="carol")
        assert await remembering.verify(dave, "dave's", user_id="dave")
        remembering.forget("carol")
    assert checking.checks == [CAROL, dave, CAROL]


async def test_equal_checks_at_the_same_moment_are_one(
    remembering: PasswordChecks, checking: Checking
) -> None:
    """Of the same user; with another password it is another check."""
    checking.hold()
    same = [asyncio.ensure_future(remembering.verify(CAROL, SECRET, user_id="carol")) for _ in range(50)]
    other = asyncio.ensure_future(remembering.verify(CAROL, "wrong", user_id="carol"))
    await checking.began()
    checking.go_on()
    assert all(await asyncio.gather(*same))
    assert not await other
    assert len(checking.checks) == 2


async def test_between_sharing_and_remembering_there_is_no_gap(
    remembering: PasswordChecks, checking: Checking
) -> None:
    """One who comes as soon as the shared check is over, before those who waited for it have heard of that, costs no
    second one."""
    first = asyncio.create_task(remembering.verify(CAROL, SECRET, user_id="carol"))
    await asyncio.sleep(0)
    while remembering._flights._flights:  # noqa: ASYNC110  # it is about this very turn of the loop
        await asyncio.sleep(0)
    assert not first.done()
    assert await remembering.verify(CAROL, SECRET, user_id="carol")
    assert await first
    assert len(checking.checks) == 1


async def test_a_check_for_nobody_is_never_shared_nor_remembered(
    remembering: PasswordChecks, checking: Checking
) -> None:
    """It is there to take its time: two unknown logins with the same password cost two checks."""
    checks = [asyncio.ensure_future(remembering.verify(CAROL, SECRET)) for _ in range(2)]
    assert all(await asyncio.gather(*checks))
    assert await remembering.verify(CAROL, SECRET)
    assert len(checking.checks) == 3


async def test_who_goes_away_does_not_end_a_shared_check(
    remembering: PasswordChecks, checking: Checking
) -> None:
    """The others get its answer."""
    checking.hold()
    first, second = (
        asyncio.ensure_future(remembering.verify(CAROL, SECRET, user_id="carol")) for _ in range(2)
    )
    await checking.began()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    checking.go_on()
    assert await second
    assert len(checking.checks) == 1


async def test_a_full_queue_is_told_to_all_who_share(checking: Checking) -> None:
    """Each of them may try again."""
    checks = PasswordChecks(workers=1, max_waiting=0, cache=CredentialCache(300, 100))
    checking.hold()
    running = asyncio.ensure_future(checks.verify(CAROL, SECRET, user_id="carol"))
    await checking.began()
    shared = [asyncio.ensure_future(checks.verify(CAROL, "x", user_id="carol")) for _ in range(2)]
    assert all(isinstance(each, Busy) for each in await asyncio.gather(*shared, return_exceptions=True))
    checking.go_on()
    assert await running
    checks.close()
