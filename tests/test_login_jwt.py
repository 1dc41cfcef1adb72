"""Tests of server/logins/token.py and server/claims.py."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from server.auth import Proof
from server.config.access import JWTRules
from server.errors import BadCredentials, TokenExpired
from server.http_client import HTTPClient
from server.logins.token import TokenLogin
from server.tokens.verifier import JWTVerifier
from tests.support.jwt_keys import SECRET, claims, hs256
from tests.support.recording import ELSEWHERE


@pytest.fixture
def login(http: HTTPClient) -> TokenLogin:
    return made(http)


def made(http: HTTPClient, **more: Any) -> TokenLogin:
    rules = JWTRules(**{"algorithms": ("HS256",), "secret": SECRET} | more)
    return TokenLogin(JWTVerifier(rules, http), rules)


async def check(login: TokenLogin, **more: Any) -> Proof | None:
    return await login.check_token(hs256(claims(**more)), ELSEWHERE)


async def test_a_token_says_who_its_user_is(login: TokenLogin) -> None:
    """The tenant where it names one, and from when until when it counts."""
    present = int(time.time())
    issued_at, expires_at = (datetime.fromtimestamp(each, UTC) for each in (present, present + 60))
    times = {"iat": present, "exp": present + 60}
    assert await check(login, tenant="acme", **times) == Proof("alice", "acme", issued_at, expires_at)
    assert await check(login, **times) == Proof("alice", None, issued_at, expires_at)


async def test_a_number_is_the_same_user_as_its_text(login: TokenLogin) -> None:
    for user in (7, "7"):
        proof = await check(login, sub=user)
        assert proof is not None and proof.user_id == "7"


async def test_the_names_of_claims_are_configured(http: HTTPClient) -> None:
    login = made(http, user_claim="user_id", tenant_claim="https://example.org/tenant")
    proof = await check(
        login, sub="root", tenant="other", user_id=42, **{"https://example.org/tenant": "acme"}
    )
    assert proof is not None and (proof.user_id, proof.tenant) == ("42", "acme")


@pytest.mark.parametrize(
    "user", [None, "", True, 1.5, ["alice"], {"id": 1}, "x" * 1025, "é" * 513, "\ud800", 10**1024]
)
async def test_a_user_that_is_none_is_refused(user: Any, login: TokenLogin) -> None:
    """Missing, empty, too long, or of another kind."""
    with pytest.raises(BadCredentials, match="the token is wrong"):
        await check(login, sub=user)


async def test_a_user_may_be_called_anything_else(login: TokenLogin) -> None:
    """Of up to 1024 bytes."""
    for user in ("x" * 1024, "é" * 512, " ", "a\nb", "0"):
        proof = await check(login, sub=user)
        assert proof is not None and proof.user_id == user


@pytest.mark.parametrize("tenant", ["", "none", "Acme", "a b", "x" * 65, 1, True, ["acme"], {"acme": 1}])
async def test_a_tenant_that_is_none_is_refused(tenant: Any, login: TokenLogin) -> None:
    """It must not become that of all who name none."""
    with pytest.raises(BadCredentials, match="the token is wrong"):
        await check(login, tenant=tenant)


async def test_a_token_need_not_say_when_it_was_made(login: TokenLogin) -> None:
    """Then nobody knows, which `auth` makes the worst of once its user was signed out."""
    proof = await check(login, iat=None)
    assert proof is not None and proof.issued_at is None


@pytest.mark.parametrize("token", ["", "opaque", "a.b", "a.b.c.d.e", "\ud800"])
async def test_what_is_no_json_web_token_is_left_to_the_next_method(token: str, login: TokenLogin) -> None:
    assert await login.check_token(token, ELSEWHERE) is None


async def test_a_wrong_token_is_refused(login: TokenLogin) -> None:
    """Here and now: no other method takes it."""
    with pytest.raises(BadCredentials, match="the token is wrong"):
        await login.check_token("a.b.c", ELSEWHERE)
    with pytest.raises(TokenExpired):
        await check(login, exp=int(time.time()) - 60)
