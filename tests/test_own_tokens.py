"""Tests of server/tokens/own.py."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from server.auth import Identity, Proof
from server.config.access import JWTRules
from server.errors import AuthUnavailable, BadCredentials, TokenExpired
from server.grants import SigningSecret, new_secret
from server.messages import now
from server.tokens.own import ISSUER, TYPE, OwnTokens
from server.tokens.services import JWTServices
from server.tokens.verifier import JWTVerifier, key_set_client
from tests.support.jwt_keys import by_hand, segment
from tests.support.recording import ELSEWHERE


def secret(number: int, retired_at: datetime | None = None) -> SigningSecret:
    created_at = datetime(2030, 1, number, tzinfo=UTC)
    return SigningSecret(f"secret{number}", new_secret(), created_at, retired_at)


FIRST, SECOND = secret(1), secret(2)


async def check(tokens: OwnTokens, token: str) -> Proof | None:
    return await tokens.check_token(token, ELSEWHERE)


async def test_a_token_lets_its_user_in() -> None:
    """With all that was said when it was made, and no other word in it than its claims."""
    tokens = OwnTokens([FIRST])
    before = now()
    token, expires_at = tokens.make("acme", "alice", "key1", 600)
    proof = await check(tokens, token)
    assert proof is not None and proof.issued_at is not None
    assert proof == Proof("alice", "acme", proof.issued_at, expires_at, "key1", "secret1")
    assert before <= proof.issued_at <= now()
    assert timedelta(seconds=600) <= expires_at - proof.issued_at < timedelta(seconds=601)
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "kid": "secret1", "typ": "notification+jwt"}
    said = jwt.decode(token, options={"verify_signature": False})
    assert said.keys() == {"iss", "sub", "tenant", "iat", "exp", "jti", "key"}


async def test_when_a_token_was_made_is_known_to_the_millisecond() -> None:
    """So that a sign-out parts the tokens before it from those after it, also within a second."""
    at = datetime(2030, 1, 1, 12, 0, 0, 123_000, UTC)
    tokens = OwnTokens([FIRST], clock=lambda: at)
    proof = await check(tokens, tokens.make("acme", "alice", "key1", 600)[0])
    assert proof is not None and proof.issued_at == at


@pytest.mark.parametrize("seconds", [-60, 0, 300])
async def test_a_token_is_later_than_the_sign_out_before_it(seconds: int) -> None:
    """Also if that was written down by a machine whose clock is ahead. It ends when it would have."""
    at = datetime(2030, 1, 1, 12, tzinfo=UTC)
    signed_out_at = at + timedelta(seconds=seconds)
    tokens = OwnTokens([FIRST], clock=lambda: at)
    token, expires_at = tokens.make("acme", "alice", "key1", 600, signed_out_at)
    said = jwt.decode(token, options={"verify_signature": False})
    issued_at = datetime.fromtimestamp(said["iat"], UTC)
    assert signed_out_at < issued_at <= max(at, signed_out_at + timedelta(milliseconds=1))
    assert said["exp"] == (at + timedelta(seconds=600)).timestamp() == expires_at.timestamp()


async def test_what_is_given_for_a_password_does_not_outlive_it() -> None:
    """Neither in time, where what decided about it has set one, nor when it is another one."""
    tokens, ends_at = OwnTokens([FIRST]), now() + timedelta(minutes=5)
    given = tokens.make_login(Identity("acme", "alice", expires_at=ends_at, key_id="its password"), True)
    others = [await check(tokens, given[kind]) for kind in ("identity", "access")]
    for proof in (tokens.check_refresh(given["refresh"]), *others):
        assert proof is not None and proof.expires_at is not None
        assert proof.key_id == "its password"
        # up to a full second, as they all are
        assert ends_at <= proof.expires_at <= ends_at + timedelta(seconds=2)


async def test_what_is_given_for_a_password_has_its_time() -> None:
    """An hour for what lets listen, a day for what gets new ones, and that only to who wants it."""
    at = now().replace(microsecond=0)
    tokens = OwnTokens([FIRST], clock=lambda: at)
    given = tokens.make_login(Identity("acme", "alice"), True)
    ends = [(await check(tokens, given[kind])).expires_at for kind in ("identity", "access")]
    assert ends == [at + timedelta(hours=1)] * 2
    assert tokens.check_refresh(given["refresh"]).expires_at == at + timedelta(days=1)
    assert set(tokens.make_login(Identity("acme", "alice"), False)) == {"identity", "access"}


async def test_no_two_tokens_are_equal() -> None:
    """Even of the same moment: each has its own `jti`."""
    at = now()
    tokens = OwnTokens([FIRST], clock=lambda: at)
    assert len({tokens.make("acme", "alice", "key1", 600)[0] for _ in range(100)}) == 100


async def test_the_newest_secret_signs_and_those_before_it_still_check() -> None:
    """In whatever order they come; one that is gone, or has retired, checks nothing."""
    tokens = OwnTokens([FIRST])
    old, _ = tokens.make("acme", "alice", "key1", 600)
    for order in ([FIRST, SECOND], [SECOND, FIRST]):
        tokens.use(order)
        new, _ = tokens.make("acme", "alice", "key1", 600)
        assert jwt.get_unverified_header(new)["kid"] == "secret2"
        assert await check(tokens, new)
        assert await check(tokens, old)
    soon = SigningSecret(FIRST.id, FIRST.secret, FIRST.created_at, now() + timedelta(minutes=1))
    tokens.use([soon, SECOND])
    assert await check(tokens, old)
    past = SigningSecret(FIRST.id, FIRST.secret, FIRST.created_at, now())
    for left in ([past, SECOND], [SECOND], []):
        tokens.use(left)
        assert await check(tokens, old) is None


async def test_without_a_secret_nothing_is_signed() -> None:
    with pytest.raises(AuthUnavailable, match="no secret"):
        OwnTokens().make("acme", "alice", "key1", 600)


async def test_an_expired_token_says_so() -> None:
    """At the second, without leeway: both ends are ours."""
    tokens = OwnTokens([FIRST], clock=lambda: now() - timedelta(seconds=61))
    token, _ = tokens.make("acme", "alice", "key1", 60)
    with pytest.raises(TokenExpired):
        await check(tokens, token)


async def test_the_clock_of_another_node_may_be_ahead() -> None:
    """A token that it has just made is good."""
    token, _ = OwnTokens([FIRST], clock=lambda: now() + timedelta(seconds=30)).make("acme", "alice", "k", 60)
    assert await check(OwnTokens([FIRST]), token)


# -- what is none of ours ------------------------------------------------------------------------------------
def said(**more: Any) -> dict[str, Any]:
    present = time.time()
    made = {
        "iss": ISSUER, "sub": "alice", "tenant": "acme", "iat": present, "exp": int(present) + 60,
        "jti": "j", "key": "key1",
    }  # fmt: skip
    return {name: value for name, value in (made | more).items() if value != "absent"}


def signed(claims: dict[str, Any] | bytes, header: dict[str, Any] | None = None) -> str:
    """With the first secret, by hand: the library would not make all of them."""
    made = {"alg": "HS256", "typ": TYPE, "kid": "secret1"} | (header or {})
    return by_hand(made, claims, FIRST.secret.encode())


async def test_a_token_made_by_hand_is_as_good() -> None:
    """The tests below leave out or change one thing of this."""
    assert await check(OwnTokens([FIRST]), signed(said()))


@pytest.mark.parametrize(
    "header",
    [{"typ": "JWT"}, {"typ": None}, {"typ": "NOTIFICATION+JWT"}, {"typ": [TYPE]}, {"kid": "secret2"}, {"kid": ""},
     {"kid": 1}, {"crit": ["exp"]}],
)  # fmt: skip
async def test_a_token_of_another_kind_is_left_to_the_next_method(header: dict[str, Any]) -> None:
    """Though it be signed with our secret."""
    assert await check(OwnTokens([FIRST]), signed(said(), header)) is None


@pytest.mark.parametrize(
    "token", ["", "opaque", "a.b", "a.b.c", "a.b.c.d", "\ud800.b.c", "é.é.é", "." * 9000]
)
async def test_what_is_no_token_is_left_to_the_next_method(token: str) -> None:
    assert await check(OwnTokens([FIRST]), token) is None


@pytest.mark.parametrize(
    "header", [{"alg": "none"}, {"alg": "HS512"}, {"alg": "RS256"}, {"alg": ""}, {"alg": None}]
)
async def test_a_token_of_another_algorithm_is_refused(header: dict[str, Any]) -> None:
    """Signed or not."""
    token = signed(said(), header)
    for each in (token, token.rpartition(".")[0] + "."):
        with pytest.raises(BadCredentials, match="the token is wrong"):
            await check(OwnTokens([FIRST]), each)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in ("iss", "sub", "tenant", "iat", "exp", "jti", "key")
        for value in ("absent", None, [], {}, True, 1e400, float("nan"), 10**30)
    ]
    + [(name, value) for name in ("iss", "sub", "tenant", "iat", "exp") for value in ("", "\ud800")],
)
async def test_every_claim_must_be_there_and_of_its_kind(name: str, value: Any) -> None:
    """It was signed with our secret, by somebody who should not have it, or for another purpose."""
    with pytest.raises(BadCredentials, match="the token is wrong|expired"):
        await check(OwnTokens([FIRST]), signed(json.dumps(said(**{name: value})).encode()))


async def test_a_changed_token_is_refused() -> None:
    header, _, signature = signed(said()).split(".")
    with pytest.raises(BadCredentials, match="the token is wrong"):
        await check(OwnTokens([FIRST]), f"{header}.{segment(said(sub='root'))}.{signature}")


async def test_a_users_token_is_no_services_token() -> None:
    """Signed with another secret."""
    http = key_set_client()
    rules = JWTRules(algorithms=("HS256",), secret=new_secret())
    token, _ = OwnTokens([FIRST]).make("acme", "alice", "key1", 60)
    with pytest.raises(BadCredentials):
        await JWTServices(JWTVerifier(rules, http), rules).check(token)
    http.close()
