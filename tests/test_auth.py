"""Tests of server/auth.py."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydispatch import dispatcher

from server.auth import Identity, Proof, sign_in_of
from server.bus import SIGN_IN_FAILED, SIGNED_IN, THROTTLED
from server.callers import Caller
from server.claims import MAX_USER_ID_BYTES
from server.commands import Join, JoinByToken
from server.errors import AuthUnavailable, BadCredentials, Busy, RateLimited, ServerError, TokenExpired
from server.grants import DEFAULT_TENANT
from server.guessing import FREE_AT_PLACE, FREE_OF_PAIR, MAX_DELAY_S, STRANGERS_AT_ONCE
from server.messages import now
from server.passwords import hash_password
from tests.support.passwords import Checking, cheap_hash
from tests.support.recording import ELSEWHERE, LOCAL
from tests.support.signing_in import CACHE_S, SignInDesk

SECRET = "carol's sécret"
CAROL = cheap_hash(SECRET)
JOIN = Join("carol", SECRET)

NOW = datetime.now(UTC)
LATER = NOW + timedelta(hours=1)
BEFORE = NOW - timedelta(hours=1)


class Method:
    """A method for passwords and tokens that says what it is told to."""

    def __init__(self, name: str = "elsewhere", answer: Proof | ServerError | None = None) -> None:
        self.name = name
        self.answer = answer
        self.asked = 0
        self.forgotten: list[tuple[str, str] | None] = []

    async def check_password(self, login: str, password: str, caller: Caller) -> Proof | None:
        return await self.check_token(password, caller)

    async def check_token(self, token: str, caller: Caller) -> Proof | None:
        self.asked += 1
        if isinstance(self.answer, ServerError):
            raise self.answer
        return self.answer

    def forget(self, tenant: str, user_id: str) -> None:
        self.forgotten.append((tenant, user_id))

    def clear(self) -> None:
        self.forgotten.append(None)


Open = Callable[..., SignInDesk]


@pytest.fixture
async def open_desk() -> AsyncIterator[Open]:
    """Makes desks, and closes them after the test. Without users it knows carol."""
    desks: list[SignInDesk] = []

    def open_desk(**options: Any) -> SignInDesk:
        desks.append(SignInDesk(options.pop("users", {"carol": CAROL}), **options))
        return desks[-1]

    yield open_desk
    for desk in desks:
        await desk.close()


@pytest.fixture
def checking(monkeypatch: pytest.MonkeyPatch) -> Checking:
    return Checking(monkeypatch)


class Heard:
    """What was told over the bus."""

    def __init__(self, desk: SignInDesk) -> None:
        self.said: list[tuple[str, ...]] = []
        dispatcher.connect(self._signed_in, SIGNED_IN, sender=desk.authenticator)
        dispatcher.connect(self._failed, SIGN_IN_FAILED, sender=desk.authenticator)

    def _signed_in(self, method: str, tenant: str, took_s: float) -> None:
        assert took_s >= 0
        self.said.append((method, tenant))

    def _failed(self, code: str, took_s: float) -> None:
        assert took_s >= 0
        self.said.append((code,))


async def _refused(desk: SignInDesk, command: Join | JoinByToken, caller: Caller = ELSEWHERE) -> ServerError:
    with pytest.raises(ServerError) as caught:
        await desk.authenticator.authenticate(command, caller)
    return caught.value


# -- passwords -----------------------------------------------------------------------------------------------
async def test_a_user_is_who_the_password_says(open_desk: Open) -> None:
    """Of the default tenant, if the method names none; it is told to those who count."""
    desk = open_desk()
    heard = Heard(desk)
    [key_id] = desk.users.key_ids
    carol = Identity(DEFAULT_TENANT, "carol", key_id=key_id)
    assert await desk.authenticator.authenticate(JOIN, ELSEWHERE) == carol
    assert heard.said == [("config", DEFAULT_TENANT)]


@pytest.mark.parametrize(
    "join", [Join("carol", "wrong"), Join("dave", SECRET), Join("dave", "dave")], ids=lambda join: join.login
)
async def test_all_else_is_refused_in_the_same_words(
    open_desk: Open, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody learns whether the login exists. The log says where it came from and what each method said, and neither
    login nor password: people mistake the fields."""
    desk = open_desk(password_methods=[Method()])
    heard = Heard(desk)
    with caplog.at_level(logging.DEBUG):
        error = await _refused(desk, join)
    assert type(error) is BadCredentials
    assert str(error) == str(BadCredentials())
    assert heard.said == [("bad_credentials",)]
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage() == "a sign-in from 192.0.2.1 failed (config: no, elsewhere: no)"


async def test_the_demo_is_there_only_if_it_is_asked_for(open_desk: Open) -> None:
    """As in DEBUG; a configured user of that name replaces it."""
    join = Join("alice", "alice")
    assert await open_desk(has_demo=True).authenticator.authenticate(join, LOCAL)
    assert await _refused(open_desk(), join, LOCAL)
    assert await _refused(open_desk(has_demo=True, users={"alice": CAROL}), join, LOCAL)
    assert await _refused(open_desk(has_demo=True), join, ELSEWHERE)


async def test_the_first_proof_counts(open_desk: Open) -> None:
    """Methods after it are not asked."""
    first, second = Method("first", Proof("7", "acme")), Method("second", Proof("8", "acme"))
    desk = open_desk(
        users={}, password_methods=[Method("none"), first, second], token_methods=[first, second]
    )
    desk.tenants.names.add("acme")
    for command in (Join("x", "y"), JoinByToken("t")):
        assert await desk.authenticator.authenticate(command, ELSEWHERE) == Identity("acme", "7")
    assert (first.asked, second.asked) == (2, 0)


async def test_the_method_that_took_a_password_is_asked_first_from_then_on(
    open_desk: Open, checking: Checking
) -> None:
    """The others would verify it in vain each time. What it says counts anew; and if it says no, the others are
    asked."""
    method = Method(answer=Proof("7"))
    desk = open_desk(password_methods=[method])
    join = Join("seven", "secret")
    for _ in range(3):
        assert await desk.authenticator.authenticate(join, ELSEWHERE)
    assert (method.asked, len(checking.checks)) == (3, 1)
    method.answer = None
    assert await _refused(desk, join)
    assert len(checking.checks) == 2
    desk.clock.now += CACHE_S
    method.answer = Proof("7")
    assert await desk.authenticator.authenticate(join, ELSEWHERE)
    assert len(checking.checks) == 3


# -- methods that cannot be asked ----------------------------------------------------------------------------
async def test_a_method_that_cannot_be_asked_keeps_nobody_else_out(open_desk: Open) -> None:
    """The others go on; for whom none vouches, nobody knows: they may try again."""
    away = Method("away", AuthUnavailable("away"))
    desk = open_desk(users={}, password_methods=[away, Method("config2", Proof("7"))])
    assert await desk.authenticator.authenticate(JOIN, ELSEWHERE)
    desk = open_desk(password_methods=[away], token_methods=[away, Method()])
    heard = Heard(desk)
    assert await desk.authenticator.authenticate(JOIN, ELSEWHERE)
    for command in (Join("dave", "x"), JoinByToken("t")):
        error = await _refused(desk, command)
        assert type(error) is AuthUnavailable
        assert error.retryable
    assert heard.said[1:] == [("auth_unavailable",)] * 2


async def test_a_busy_method_is_busy(open_desk: Open) -> None:
    """Asking the next one instead would say no where a yes was possible."""
    desk = open_desk(users={}, password_methods=[Method("full", Busy("full")), Method("none")])
    assert type(await _refused(desk, JOIN)) is Busy


# -- tokens --------------------------------------------------------------------------------------------------
async def test_a_token_is_asked_of_each_method_until_one_takes_it(open_desk: Open) -> None:
    """With all that it says."""
    proof = Proof("7", "acme", BEFORE, LATER, key_id="k", secret_id="s", by_own_clock=True)
    desk = open_desk(token_methods=[Method("other"), Method("own", proof)])
    desk.tenants.names.add("acme")
    desk.tenants.keys.add("k")
    heard = Heard(desk)
    identity = await desk.authenticator.authenticate(JoinByToken("t"), ELSEWHERE)
    assert identity == Identity("acme", "7", BEFORE, LATER, "k", "s", by_own_clock=True)
    assert heard.said == [("own", "acme")]


def test_a_sign_in_says_what_can_end_it() -> None:
    """When it was proved, with which key, and which secret of ours signed it; nothing said means proved now."""
    said = sign_in_of(Identity("acme", "7", BEFORE, key_id="k", secret_id="s"))
    assert (said.proved_at, said.key_id, said.secret_id, said.by_own_clock) == (BEFORE, "k", "s", False)
    unsaid = sign_in_of(Identity("acme", "7"))
    assert NOW <= unsaid.proved_at <= now()
    assert (unsaid.key_id, unsaid.secret_id, unsaid.by_own_clock) == (None, None, True)


@pytest.mark.parametrize(
    "error", [BadCredentials("the token is wrong"), TokenExpired()], ids=["wrong", "expired"]
)
async def test_a_token_that_a_method_refuses_is_refused(
    open_desk: Open, error: ServerError, caplog: pytest.LogCaptureFixture
) -> None:
    """It was for that method; no other one is asked."""
    second = Method("second", Proof("7"))
    desk = open_desk(token_methods=[Method("zeroth"), Method("first", error), second])
    with caplog.at_level(logging.INFO):
        assert type(await _refused(desk, JoinByToken("t"))) is type(error)
    assert not second.asked
    assert f"(zeroth: no, first: {error.code})" in caplog.text


async def test_a_token_that_nobody_takes_is_wrong(open_desk: Open) -> None:
    """Also if no method for tokens is configured; it speaks of no login."""
    for methods in ([], [Method()]):
        error = await _refused(open_desk(token_methods=methods), JoinByToken("t"))
        assert type(error) is BadCredentials
        assert str(error) == "the token is wrong"


async def test_a_token_that_has_ended_is_expired(open_desk: Open) -> None:
    """Whatever the method thinks of it: at its very end it is over."""
    method = Method(answer=Proof("7", expires_at=NOW))
    assert (
        type(await _refused(open_desk(token_methods=[method], now=lambda: NOW), JoinByToken("t")))
        is TokenExpired
    )


async def test_the_key_of_a_token_must_still_be_good(open_desk: Open) -> None:
    """A revoked key takes with it the tokens that were made with it."""
    desk = open_desk(token_methods=[Method(answer=Proof("7", key_id="k"))])
    assert type(await _refused(desk, JoinByToken("t"))) is BadCredentials
    desk.tenants.keys.add("k")
    assert await desk.authenticator.authenticate(JoinByToken("t"), ELSEWHERE)


# -- tenants and users ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("proof", "default_tenant", "reason"),
    [
        (Proof("7"), None, "no default_tenant"),
        (Proof("7"), "gone", "the tenant 'gone' is not there"),
        (Proof("7", "gone"), DEFAULT_TENANT, "the tenant 'gone' is not there"),
        (Proof("7", ""), DEFAULT_TENANT, "the tenant '' is not there"),
        (Proof(""), DEFAULT_TENANT, "the user id is empty"),
        (Proof("x" * (MAX_USER_ID_BYTES + 1)), DEFAULT_TENANT, "longer than 1024 bytes"),
        (Proof("é" * (MAX_USER_ID_BYTES // 2 + 1)), DEFAULT_TENANT, "longer than 1024 bytes"),
        (Proof("\ud800"), DEFAULT_TENANT, "not valid Unicode"),
    ],
)
async def test_a_proof_without_a_tenant_or_user_is_refused(
    open_desk: Open,
    proof: Proof,
    default_tenant: str | None,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The operator is told why; the stranger hears what anybody hears who is wrong."""
    method = Method(answer=proof)
    desk = open_desk(
        users={}, password_methods=[method], token_methods=[method], default_tenant=default_tenant
    )
    for command, words in ((JOIN, str(BadCredentials())), (JoinByToken("t"), "the token is wrong")):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            error = await _refused(desk, command)
        assert (type(error), str(error)) == (BadCredentials, words)
        assert reason in caplog.text
        assert "carol" not in caplog.text


async def test_the_longest_user_id_is_taken(open_desk: Open) -> None:
    """And a method's own tenant goes before the default one."""
    proof = Proof("é" * (MAX_USER_ID_BYTES // 2), "acme")
    desk = open_desk(users={}, password_methods=[Method(answer=proof)])
    desk.tenants.names.add("acme")
    assert await desk.authenticator.authenticate(JOIN, ELSEWHERE) == Identity("acme", proof.user_id)


@pytest.mark.parametrize("by_own_clock", [False, True])
async def test_a_proof_by_our_own_clock_is_compared_with_it(open_desk: Open, by_own_clock: bool) -> None:
    """A sign-out of a clock that is ahead voids what other clocks say was before it, and not what we know was after."""
    method = Method(answer=Proof("carol", issued_at=NOW, by_own_clock=by_own_clock))
    desk = open_desk(users={}, password_methods=[method])
    desk.tenants.sign_outs[DEFAULT_TENANT, "carol"] = LATER
    desk.tenants.heard_at[DEFAULT_TENANT, "carol"] = BEFORE
    if by_own_clock:
        assert (await desk.authenticator.authenticate(JOIN, ELSEWHERE)).by_own_clock
    else:
        assert type(await _refused(desk, JOIN)) is BadCredentials


async def test_a_refused_proof_is_no_guess(open_desk: Open) -> None:
    """The password was right: who is kept out by a missing tenant is not slowed for it."""
    desk = open_desk(default_tenant=None)
    for _ in range(3 * FREE_OF_PAIR):
        assert type(await _refused(desk, JOIN)) is BadCredentials
    assert not desk.clock.sleepers


# -- sign-out ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("issued_at", "is_over"),
    [(BEFORE, True), (NOW, True), (NOW + timedelta(milliseconds=1), False), (None, True)],
    ids=["before", "at", "after", "unknown"],
)
async def test_a_token_from_before_the_sign_out_is_void(
    open_desk: Open, issued_at: datetime | None, is_over: bool
) -> None:
    """One that does not say when it was made may be as old. Others' tokens are as good as before."""
    method = Method(answer=Proof("7", issued_at=issued_at))
    desk = open_desk(token_methods=[method])
    desk.tenants.sign_outs |= {(DEFAULT_TENANT, "8"): LATER, ("other", "7"): LATER}
    assert await desk.authenticator.authenticate(JoinByToken("t"), ELSEWHERE)
    desk.tenants.sign_outs[DEFAULT_TENANT, "7"] = NOW
    if is_over:
        assert type(await _refused(desk, JoinByToken("t"))) is BadCredentials
    else:
        assert await desk.authenticator.authenticate(JoinByToken("t"), ELSEWHERE)


@pytest.mark.parametrize(("issued_at", "is_over"), [(BEFORE, True), (NOW, True), (LATER, False)])
async def test_a_token_of_ours_from_before_all_were_void_is_void(
    open_desk: Open, issued_at: datetime, is_over: bool
) -> None:
    """As when its tenant began after it, whose name another one had. Others' tokens are not ours to void."""
    ours, theirs = (
        Proof("7", issued_at=issued_at, expires_at=LATER, secret_id=secret_id) for secret_id in ("s", None)
    )
    method = Method(answer=ours)
    desk = open_desk(token_methods=[method])
    desk.tenants.voids[DEFAULT_TENANT, "7"] = NOW
    if is_over:
        assert type(await _refused(desk, JoinByToken("t"))) is BadCredentials
    else:
        assert await desk.authenticator.authenticate(JoinByToken("t"), ELSEWHERE)
    method.answer = theirs
    assert await desk.authenticator.authenticate(JoinByToken("t"), ELSEWHERE)


async def test_a_proof_of_another_moment_is_looked_at_anew(open_desk: Open) -> None:
    """One that does not say when it was made may be from before the sign-out; it is refused as a token is."""
    desk = open_desk()
    assert desk.authenticator.still(Proof("7")) == Identity(DEFAULT_TENANT, "7")
    desk.tenants.sign_outs[DEFAULT_TENANT, "7"] = NOW
    with pytest.raises(BadCredentials, match="the token is wrong"):
        desk.authenticator.still(Proof("7"))


async def test_a_password_after_the_sign_out_is_fine(open_desk: Open, checking: Checking) -> None:
    """It is proved now, by a check that was not made before. A method's proof from before is not."""
    method = Method(answer=Proof("7", issued_at=BEFORE))
    desk = open_desk(password_methods=[method])
    assert await desk.authenticator.authenticate(JOIN, ELSEWHERE)
    assert await desk.authenticator.authenticate(Join("seven", "x"), ELSEWHERE)
    desk.tenants.sign_outs |= {(DEFAULT_TENANT, "carol"): NOW, (DEFAULT_TENANT, "7"): NOW}
    desk.authenticator.forget(DEFAULT_TENANT, "carol")
    checking.checks.clear()
    assert await desk.authenticator.authenticate(JOIN, ELSEWHERE)
    assert checking.checks == [CAROL]
    assert await _refused(desk, Join("seven", "x"))


async def test_a_sign_out_is_told_to_methods_that_remember(open_desk: Open) -> None:
    """And a reload to all."""
    memory = Method()
    desk = open_desk(memories=[memory])
    desk.authenticator.forget("acme", "7")
    desk.authenticator.forget_all()
    assert memory.forgotten == [("acme", "7"), None]


# -- reload --------------------------------------------------------------------------------------------------
async def test_changed_settings_count_at_once(open_desk: Open, checking: Checking) -> None:
    """And nothing is remembered from before them."""
    desk = open_desk()
    desk.tenants.names.add("acme")
    assert await desk.authenticator.authenticate(JOIN, ELSEWHERE)
    desk.authenticator.apply(default_tenant="acme", cache_s=0, token_methods=[])
    [key_id] = desk.users.key_ids
    for _ in range(2):
        carol = Identity("acme", "carol", key_id=key_id)
        assert await desk.authenticator.authenticate(JOIN, ELSEWHERE) == carol
    assert len(checking.checks) == 3
    assert await _refused(desk, JoinByToken("t"))
    method = Method(answer=Proof("7", "acme"))
    desk.authenticator.apply(default_tenant=None, cache_s=0, token_methods=[method])
    assert type(await _refused(desk, JOIN)) is BadCredentials
    assert await desk.authenticator.authenticate(JoinByToken("t"), ELSEWHERE) == Identity("acme", "7")


async def test_who_is_checked_during_a_reload_is_checked_by_what_holds_after_it(open_desk: Open) -> None:
    """Else whoever was taken out meanwhile would be in, and stay. So is who comes with the same after it, and before
    that check has ended."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Method):
        async def check_password(self, login: str, password: str, caller: Caller) -> Proof | None:
            answer = self.answer
            asked.set()
            await go_on.wait()
            return answer  # type: ignore[return-value]  # no error here

    method = Slow(answer=Proof("carol"))
    desk = open_desk(users={}, password_methods=[method])
    joining = asyncio.create_task(desk.authenticator.authenticate(JOIN, ELSEWHERE))
    await asked.wait()
    method.answer = None
    desk.authenticator.apply(default_tenant=DEFAULT_TENANT, cache_s=0, token_methods=[])
    after = asyncio.create_task(desk.authenticator.authenticate(JOIN, ELSEWHERE))
    await asyncio.sleep(0)
    go_on.set()
    for join in (joining, after):
        with pytest.raises(BadCredentials):
            await join


async def test_who_comes_after_a_sign_out_shares_no_attempt_from_before_it(open_desk: Open) -> None:
    """What was found for that one is older than the sign-out, and voided by it."""
    asked, go_on = asyncio.Queue[datetime](), asyncio.Event()

    class Held(Method):
        async def check_token(self, token: str, caller: Caller) -> Proof | None:
            asked_at = now()
            asked.put_nowait(asked_at)
            await go_on.wait()
            return Proof("7", issued_at=asked_at, by_own_clock=True)

    desk = open_desk(users={}, password_methods=[Held()])
    first = asyncio.create_task(desk.authenticator.authenticate(JOIN, ELSEWHERE))
    desk.tenants.sign_outs[DEFAULT_TENANT, "7"] = await asked.get()
    desk.authenticator.forget(DEFAULT_TENANT, "7")
    await asyncio.sleep(0.002)  # a millisecond is the unit of sign-outs
    second = asyncio.create_task(desk.authenticator.authenticate(JOIN, ELSEWHERE))
    await desk.clock.settle()
    go_on.set()
    with pytest.raises(BadCredentials):
        await desk.finish(first)
    assert (await desk.finish(second)).user_id == "7"


# -- many at once --------------------------------------------------------------------------------------------
async def test_a_thousand_joins_of_twenty_users_cost_twenty_checks(
    open_desk: Open, checking: Checking
) -> None:
    """As after a restart: from all their tabs and devices at the same moment, and again a moment later."""
    desk = open_desk(users={f"user{number}": cheap_hash(f"secret {number}") for number in range(20)})
    joins = [Join(f"user{number % 20}", f"secret {number % 20}") for number in range(1000)]
    for _ in range(2):
        identities = await asyncio.gather(
            *(
                desk.authenticator.authenticate(join, replace(ELSEWHERE, address=f"192.0.2.{number % 7}"))
                for number, join in enumerate(joins)
            )
        )
        assert [each.user_id for each in identities] == [join.login for join in joins]
    assert len(checking.checks) == 20


async def test_the_loop_is_free_while_real_passwords_are_checked(open_desk: Open) -> None:
    """Of full price, several at once: meanwhile others come and go."""
    desk = open_desk(users={"carol": hash_password(SECRET)}, token_methods=[Method(answer=Proof("7"))])
    checks = [
        asyncio.create_task(desk.authenticator.authenticate(Join("carol", f"wrong {number}"), ELSEWHERE))
        for number in range(4)
    ]
    await desk.clock.settle()
    meanwhile = 0
    while not all(check.done() for check in checks):
        assert await desk.authenticator.authenticate(JoinByToken("t"), ELSEWHERE)
        await asyncio.sleep(0)
        meanwhile += 1
    assert meanwhile > 10
    assert all(isinstance(check.exception(), BadCredentials) for check in checks)


async def test_equal_wrong_joins_are_one_attempt(open_desk: Open, checking: Checking) -> None:
    """A client that repeats itself with an old password in every tab is refused in all, checked once, and not taken
    for somebody who guesses."""
    desk = open_desk()
    attempts = [
        asyncio.create_task(desk.authenticator.authenticate(Join("carol", "old"), ELSEWHERE))
        for _ in range(99)
    ]
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert all(type(each) is BadCredentials for each in outcomes)
    assert len(checking.checks) == 1


# -- guessing ------------------------------------------------------------------------------------------------
def _guess(desk: SignInDesk, logins: Iterable[str], addresses: Sequence[str]) -> asyncio.Future[list[Any]]:
    """A wrong password of each login from each address, another one each time; what becomes of them."""
    guesses = [
        desk.authenticator.authenticate(Join(login, f"guess {number}"), replace(ELSEWHERE, address=address))
        for login in logins
        for number, address in enumerate(addresses)
    ]
    return asyncio.gather(*guesses, return_exceptions=True)


async def test_an_attack_on_a_login_is_slowed_and_its_owner_notices_nothing(open_desk: Open) -> None:
    """From three hundred addresses; at the usual place the owner comes in without a delay, with nothing remembered but
    that they are known there. Elsewhere they come in after a few seconds."""
    desk = open_desk()
    throttled: list[str] = []

    def note(limit: str) -> None:
        throttled.append(limit)

    dispatcher.connect(note, THROTTLED)
    assert await desk.authenticator.authenticate(JOIN, LOCAL)
    addresses = [f"203.0.{number // 250}.{number % 250}" for number in range(300)]
    outcomes = await desk.finish(_guess(desk, ["carol"], addresses))
    assert all(type(each) is BadCredentials for each in outcomes)
    assert len(throttled) > 200
    desk.authenticator.forget_all()
    throttled.clear()
    assert await desk.authenticator.authenticate(JOIN, LOCAL)
    assert not throttled
    began = desk.clock.now
    elsewhere = asyncio.create_task(desk.authenticator.authenticate(JOIN, ELSEWHERE))
    assert (await desk.finish(elsewhere)).user_id == "carol"
    assert 0 < desk.clock.now - began <= MAX_DELAY_S


async def test_an_attack_with_many_logins_from_many_places_delays_nobody_who_is_known(
    open_desk: Open, checking: Checking
) -> None:
    """At the owner's login from elsewhere, and at others' from the owner's place: more guesses than may wait. With all
    threads taken the owner comes in by what is remembered; without that few checks are before theirs."""
    desk = open_desk()
    assert await desk.authenticator.authenticate(JOIN, ELSEWHERE)
    addresses = [f"203.0.113.{number}" for number in range(60)]
    logins = [f"user{number}" for number in range(40)]
    checking.hold()
    attack = asyncio.gather(
        _guess(desk, ["carol", *logins], addresses), _guess(desk, logins, [ELSEWHERE.address])
    )
    await desk.clock.settle()
    assert await desk.authenticator.authenticate(JOIN, ELSEWHERE)
    desk.authenticator.forget_all()
    owner = asyncio.create_task(desk.authenticator.authenticate(JOIN, ELSEWHERE))
    await desk.clock.settle()
    begun = len(checking.checks)
    checking.go_on()
    assert (await owner).user_id == "carol"
    assert checking.passwords.index(SECRET, begun) - begun <= STRANGERS_AT_ONCE
    outcomes = {type(each) for each in itertools.chain(*await desk.finish(attack))}
    assert {BadCredentials, Busy} <= outcomes <= {BadCredentials, Busy, RateLimited}


async def test_who_does_not_wait_for_a_slowed_guess_has_made_it(open_desk: Open, checking: Checking) -> None:
    """Going away and coming back does not skip the wait: the guess goes on, and the next one comes after it."""
    desk = open_desk()
    for number in range(FREE_OF_PAIR):
        assert await _refused(desk, Join("carol", f"guess {number}"))
    guess = asyncio.create_task(desk.authenticator.authenticate(Join("carol", "one more"), ELSEWHERE))
    await desk.clock.settle()
    guess.cancel()
    await asyncio.gather(guess, return_exceptions=True)
    assert len(desk.clock.sleepers) == 1
    following = asyncio.create_task(desk.authenticator.authenticate(JOIN, ELSEWHERE))
    await desk.clock.settle()
    assert len(desk.clock.sleepers) == 1
    assert len(checking.checks) == FREE_OF_PAIR
    assert (await desk.finish(following)).user_id == "carol"
    assert len(checking.checks) == FREE_OF_PAIR + 2


async def test_tokens_are_not_slowed(open_desk: Open) -> None:
    """There is nothing to guess."""
    desk = open_desk(token_methods=[Method(answer=BadCredentials("the token is wrong"))])
    for _ in range(2 * FREE_AT_PLACE):
        assert await _refused(desk, JoinByToken("t"))
    assert not desk.clock.sleepers


# -- the end -------------------------------------------------------------------------------------------------
async def test_close_ends_the_attempts_under_way(open_desk: Open, checking: Checking) -> None:
    """And may be repeated."""
    desk = open_desk()
    checking.hold()
    attempt = asyncio.create_task(desk.authenticator.authenticate(JOIN, ELSEWHERE))
    await checking.began()
    await desk.authenticator.close()
    await desk.authenticator.close()
    with pytest.raises(Busy):
        await attempt
    checking.go_on()
