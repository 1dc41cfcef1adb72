"""Tests of server/logins/hook.py and hook_cache.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from server.auth import Proof
from server.config.access import HTTPHook
from server.errors import AuthUnavailable, Busy, StartupError
from server.logins import hook as hook_module
from server.logins.hook import HookLogin
from server.logins.hook_cache import ProofCache
from server.messages import now
from tests.support.answering import AnsweringServer
from tests.support.ports import free_port
from tests.support.recording import ELSEWHERE, LOCAL
from tests.support.smtp_sink import CertificateAuthority

YES = {"user_id": "alice"}


@asynccontextmanager
async def hooked(url: str, **settings: Any) -> AsyncIterator[HookLogin]:
    login = HookLogin(HTTPHook(**{"url": url, "timeout_s": 10, "cache_s": 0} | settings))
    yield login
    await login.close()


async def ask(login: HookLogin, password: str = "right") -> Proof | None:
    return await login.check_password("al", password, ELSEWHERE)


async def knows_not(login: HookLogin) -> None:
    with pytest.raises(AuthUnavailable, match="does not answer"):
        await ask(login)


# -- what is asked and answered ------------------------------------------------------------------------------
async def test_the_hook_gets_the_credentials_the_address_and_who_asks() -> None:
    """As JSON; the secret as a bearer token."""
    async with AnsweringServer(YES) as server, hooked(server.url, secret="ours") as login:
        await login.check_password("al", 'pa"ß\ud800', ELSEWHERE)
        await login.check_token("opaque", LOCAL)
        first, second = server.questions
        assert (first.method, first.path) == ("POST", "/answers")
        assert first.headers["content-type"] == "application/json"
        assert first.headers["authorization"] == "Bearer ours"
        assert first.body == {"login": "al", "password": 'pa"ß\ud800', "address": "192.0.2.1"}
        assert second.body == {"token": "opaque", "address": "127.0.0.1"}


async def test_without_a_secret_no_authorization_is_sent() -> None:
    async with AnsweringServer(YES) as server, hooked(server.url) as login:
        await ask(login)
        assert "authorization" not in server.questions[0].headers


async def test_the_secret_may_change_while_the_server_runs() -> None:
    """From the next question on."""
    async with AnsweringServer(YES) as server, hooked(server.url, secret="old") as login:
        await ask(login)
        login.apply(HTTPHook(url=server.url, secret="new"))
        await ask(login)
        assert [each.headers["authorization"] for each in server.questions] == ["Bearer old", "Bearer new"]


async def test_a_yes_says_who_it_is() -> None:
    """A number is the same user as its text; a tenant and an end only where they are said."""
    ends = datetime(2040, 1, 2, 3, 4, 5, tzinfo=UTC)
    async with AnsweringServer() as server, hooked(server.url) as login:
        for body, expected in (
            ({"user_id": 7}, ("7", None, None)),
            ({"user_id": "a", "tenant": None, "expires_at": None, "expires_in": None}, ("a", None, None)),
            ({"user_id": "a", "tenant": "acme", "more": 1}, ("a", "acme", None)),
            ({"user_id": "a", "expires_at": "2040-01-02T03:04:05Z"}, ("a", None, ends)),
            ({"user_id": "a", "expires_at": "2040-01-02T05:04:05+02:00", "expires_in": 1}, ("a", None, ends)),
        ):
            server.body = body
            proof = await ask(login)
            assert proof is not None and proof.key_id is None
            assert (proof.user_id, proof.tenant, proof.expires_at) == expected


async def test_a_lifetime_counts_from_the_question() -> None:
    """And so does the age of the proof: what was signed out meanwhile is out."""
    async with AnsweringServer({"user_id": "a", "expires_in": 1.5}) as server, hooked(server.url) as login:
        server.hold()
        before = now()
        asking = asyncio.create_task(ask(login))
        await server.asked(1)
        between = now()
        server.let_go()
        proof = await asking
        assert proof is not None and proof.issued_at is not None
        assert before <= proof.issued_at <= between
        assert proof.expires_at == proof.issued_at + timedelta(seconds=1.5)


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_no_is_a_no(status: int) -> None:
    """Whatever else is said with it; it is no failure."""
    async with AnsweringServer(YES) as server, hooked(server.url) as login:
        server.status = status
        assert await ask(login) is None
        assert await login.check_token("t", ELSEWHERE) is None


# -- what lets nobody in -------------------------------------------------------------------------------------
@pytest.mark.parametrize("status", [201, 204, 304, 400, 429, 500, 503])
async def test_any_other_answer_is_none(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """The log says which, once."""
    async with AnsweringServer(b"") as server, hooked(server.url + "?key=secret") as login:
        server.status = status
        for _ in range(3):
            await knows_not(login)
    [message] = caplog.messages
    assert f"its answer is {status}" in message and server.url in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "no JSON object"),
        (b"<html>", "no JSON object"),
        (b"[]", "no JSON object"),
        (b"true", "no JSON object"),
        (b"\xff\xfe", "no JSON object"),
        (b"[" * 60_000, "no JSON object"),
        (b'{"user_id": 1' + b"0" * 5000 + b"}", "no JSON object"),
        ({}, "user_id"),
        ({"user_id": None}, "user_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": True}, "user_id"),
        ({"user_id": 1.0}, "user_id"),
        ({"user_id": ["alice"]}, "user_id"),
        ({"user_id": "x" * 1025}, "user_id"),
        ({"user_id": "\ud800"}, "user_id"),
        (YES | {"tenant": "No Name"}, "tenant"),
        (YES | {"tenant": 1}, "tenant"),
        (YES | {"tenant": ""}, "tenant"),
        (YES | {"expires_at": "soon"}, "expires_at"),
        (YES | {"expires_at": "2040-01-02T03:04:05"}, "expires_at"),
        (YES | {"expires_at": "9999-12-31T23:59:59-12:00"}, "expires_at"),
        (YES | {"expires_at": 4102444800}, "expires_at"),
        (YES | {"expires_in": "60"}, "expires_in"),
        (YES | {"expires_in": True}, "expires_in"),
        (YES | {"expires_in": 0}, "expires_in"),
        (YES | {"expires_in": -1}, "expires_in"),
        (YES | {"expires_in": float("nan")}, "expires_in"),
        (YES | {"expires_in": float("inf")}, "expires_in"),
        (YES | {"expires_in": 10**30}, "expires_in"),
        (b" " * (64 * 1024) + b'{"user_id": "alice"}', "64 KiB"),
    ],
)
async def test_a_yes_that_is_not_understood_is_none(
    body: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what is wrong with it, and not what it says."""
    caplog.set_level("WARNING")
    async with AnsweringServer(body) as server, hooked(server.url) as login:
        await knows_not(login)
    [message] = caplog.messages
    assert why in message
    assert "No Name" not in message


async def test_a_redirect_is_not_followed() -> None:
    """Passwords go nowhere but to the address that is configured."""
    async with AnsweringServer(YES) as other, AnsweringServer() as server, hooked(server.url) as login:
        for status in (301, 302, 303, 307, 308):
            server.status, server.headers = status, {"Location": other.url}
            await knows_not(login)
        assert len(server.questions) == 5
        assert other.questions == []


async def test_a_hook_that_does_not_answer_lets_nobody_in(caplog: pytest.LogCaptureFixture) -> None:
    """After `timeout_s`, also who waited for their turn."""
    async with AnsweringServer(YES) as server, hooked(server.url, timeout_s=0.5) as login:
        server.hold()
        asking = (ask(login, str(number)) for number in range(120))
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(each) for each in outcomes} == {AuthUnavailable}
    assert [message for message in caplog.messages if "within 0.5 s" in message] == caplog.messages[:1]


async def test_a_hook_that_is_back_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    """At once; the log says that it was away, and that it is back."""
    port = free_port()
    async with hooked(f"http://127.0.0.1:{port}/") as login:
        await knows_not(login)
        await knows_not(login)
        async with AnsweringServer(YES, port=port):
            assert await ask(login)
            assert await ask(login)
    away, back = caplog.messages
    assert "decides nothing" in away and "answers again" in back


async def test_the_hooks_certificate_is_checked(tmp_path: Path) -> None:
    """Against the authorities that are configured, and by its name."""
    authority = CertificateAuthority(tmp_path)
    async with AnsweringServer(YES, tls=authority.server_context()) as server:
        async with hooked(server.url, ca=authority.ca_file) as login:
            assert await ask(login)
        async with hooked(server.url) as login:
            await knows_not(login)
        assert len(server.questions) == 1
    async with AnsweringServer(YES, tls=authority.server_context(["example.org"])) as server:
        async with hooked(server.url, ca=authority.ca_file) as login:
            await knows_not(login)
        assert server.questions == []


async def test_a_file_of_authorities_that_is_not_there_is_an_error_at_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"none\.pem"):
        HookLogin(HTTPHook(url="https://127.0.0.1/", ca=tmp_path / "none.pem"))


# -- asking no more than needed ------------------------------------------------------------------------------
async def test_a_yes_is_remembered_for_the_same_credentials() -> None:
    """Also for the same address only, which the hook may have gone by; a no is not remembered."""
    async with AnsweringServer(YES) as server, hooked(server.url, cache_s=3600) as login:
        first = await ask(login)
        assert await ask(login) == first
        assert len(server.questions) == 1
        server.status = 403
        assert await ask(login, "wrong") is None
        assert await ask(login, "wrong") is None
        assert await login.check_password("al", "right", LOCAL) is None
        assert await login.check_password("alr", "ight", ELSEWHERE) is None
        assert await login.check_token("right", ELSEWHERE) is None
        assert len(server.questions) == 6
        assert await ask(login) == first


async def test_with_cache_s_0_every_join_asks() -> None:
    async with AnsweringServer(YES) as server, hooked(server.url) as login:
        await ask(login)
        await ask(login)
        assert len(server.questions) == 2


async def test_a_yes_is_not_remembered_beyond_its_end() -> None:
    async with AnsweringServer(YES | {"expires_at": "2020-01-01T00:00:00Z"}) as server:
        async with hooked(server.url, cache_s=3600) as login:
            await ask(login)
            await ask(login)
            assert len(server.questions) == 2


async def test_the_credentials_are_not_kept() -> None:
    """Neither as they are nor as a hash that could be found by trying."""
    async with AnsweringServer(YES) as server:
        async with hooked(server.url, cache_s=3600) as one, hooked(server.url, cache_s=3600) as two:
            await ask(one, "hunter2")
            await ask(two, "hunter2")
            assert "hunter2" not in repr(vars(one)) + repr(one._cache._entries)
            assert set(one._cache._entries).isdisjoint(two._cache._entries)


async def test_the_same_question_is_asked_once_at_a_time() -> None:
    """For all who ask it meanwhile, also if the first goes away."""
    async with AnsweringServer(YES) as server, hooked(server.url) as login:
        server.hold()
        asking = [asyncio.create_task(ask(login)) for _ in range(20)]
        await server.asked(1)
        asking[0].cancel()
        server.let_go()
        proofs = await asyncio.gather(*asking[1:])
        assert {proof and proof.user_id for proof in proofs} == {"alice"}
        assert len(server.questions) == 1


async def test_whoever_is_signed_out_is_asked_for_anew() -> None:
    """That user only, of that tenant or of none; `clear` is for all."""
    async with AnsweringServer() as server, hooked(server.url, cache_s=3600) as login:
        users = [("a", None), ("a", "acme"), ("a", "other"), ("b", None)]
        for number, (user, tenant) in enumerate(users):
            server.body = {"user_id": user, "tenant": tenant}
            await ask(login, str(number))

        async def asked_anew() -> list[int]:
            server.questions.clear()
            for number, (user, tenant) in enumerate(users):
                server.body = {"user_id": user, "tenant": tenant}
                await ask(login, str(number))
            return [int(question.body["password"]) for question in server.questions]

        assert await asked_anew() == []
        login.forget("acme", "a")
        assert await asked_anew() == [0, 1]
        login.clear()
        assert await asked_anew() == [0, 1, 2, 3]


async def test_an_answer_from_before_a_sign_out_is_for_nobody_who_comes_after_it() -> None:
    """It is older than the sign-out, for who waited for it, and is not remembered."""
    async with AnsweringServer(YES) as server, hooked(server.url, cache_s=3600) as login:
        server.hold()
        before = asyncio.create_task(ask(login))
        await server.asked(1)
        await asyncio.sleep(0.002)  # a millisecond is the unit of sign-outs
        login.forget("default", "alice")
        signed_out_at = now()
        after = asyncio.create_task(ask(login))
        await server.asked(2)
        server.let_go()
        old, new = await before, await after
        assert old and old.issued_at and new and new.issued_at
        assert old.issued_at < signed_out_at <= new.issued_at


@pytest.mark.parametrize("forget", [lambda login: login.forget("default", "alice"), HookLogin.clear])
async def test_an_answer_from_before_a_sign_out_is_not_remembered(
    forget: Callable[[HookLogin], None],
) -> None:
    """Though it comes after it."""
    async with AnsweringServer(YES) as server, hooked(server.url, cache_s=3600) as login:
        server.hold()
        asking = asyncio.create_task(ask(login))
        await server.asked(1)
        forget(login)
        server.let_go()
        await asking
        await ask(login)
        assert len(server.questions) == 2


async def test_too_many_questions_are_refused_as_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait are not lost by it, and afterwards there is room again."""
    monkeypatch.setattr(hook_module, "MAX_QUESTIONS", 60)
    async with AnsweringServer(YES) as server, hooked(server.url) as login:
        server.hold()
        asking = [asyncio.create_task(ask(login, str(number))) for number in range(60)]
        await server.asked(hook_module.CONNECTIONS)
        with pytest.raises(Busy, match="too many logins"):
            await ask(login, "one more")
        server.let_go()
        assert all(await asyncio.gather(*asking))
        assert await ask(login, "one more")


async def test_closing_gives_up_the_questions() -> None:
    """Whether or not the hook ever answers."""
    async with AnsweringServer(YES) as server, hooked(server.url) as login:
        server.hold()
        asking = asyncio.create_task(ask(login))
        await server.asked(1)
        await login.close()
        [outcome] = await asyncio.gather(asking, return_exceptions=True)
        assert isinstance(outcome, AuthUnavailable | Busy | asyncio.CancelledError)


# -- the cache -----------------------------------------------------------------------------------------------
def test_the_cache_is_bounded_and_forgets_by_age() -> None:
    """The oldest goes first, when it is full or when its time has come."""
    moment = 0.0
    cache = ProofCache(10, max_entries=3, clock=lambda: moment)
    for number in range(4):
        cache.put(bytes([number]), Proof(str(number)))
        moment += 1
    assert [cache.get(bytes([number])) is not None for number in range(4)] == [False, True, True, True]
    moment = 11.0
    assert cache.get(b"\1") is None
    assert len(cache) == 2
    cache.put(b"\2", Proof("2"))
    moment = 13.0
    assert cache.get(b"\3") is None
    assert cache.get(b"\2") == Proof("2")


def test_the_settings_show_no_secret() -> None:
    assert "ours" not in repr(HTTPHook(url="https://example.org/", secret="ours"))
