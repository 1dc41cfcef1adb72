"""Tokens for a password, at `/api/users/…`, as CONTRACT C3 has them, from outside."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.config import load
from server.messages import now
from server.passwords import hash_password
from server.wiring import open_beside
from tests.support.client import SocketClient
from tests.support.feeds import listening, must, post, refused
from tests.support.processes import wait_until
from tests.support.running_server import Response, RunningServer

TOKEN = "/api/users/token/"
REFRESH = "/api/users/token/refresh/"
VERIFY = "/api/users/token/verify/"
IS_AUTHENTICATED = "/api/users/is-authenticated/"

PASSWORD = "dave's secret"
NOT_FOUND = "No active account found with the given credentials"
INVALID = {"detail": "Token is invalid or expired", "code": "token_not_valid"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("users")) as running:
        yield running


@pytest.fixture
def tokens(server: RunningServer) -> dict[str, str]:
    return obtain(server)


def obtain(server: RunningServer, user: str = "alice", password: str | None = None) -> dict[str, str]:
    tokens: dict[str, str] = must(post(server, TOKEN, {"username": user, "password": password or user}))
    return tokens


def said(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def is_authenticated(server: RunningServer, authorization: str | None) -> Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    return server.request("GET", IS_AUTHENTICATED, headers=headers)


def problem(answer: Response, status: int) -> dict[str, Any]:
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    return body


# -- obtain --------------------------------------------------------------------------------------------------
def test_a_password_is_worth_three_tokens(tokens: dict[str, str]) -> None:
    """`refresh` for a day, `access` and `identity` for an hour, all HS256; the identity names its user in `user_id`."""
    assert tokens.keys() == {"refresh", "access", "identity"}
    for kind, lifetime_s in (("refresh", 24 * 3600), ("access", 3600), ("identity", 3600)):
        claims = said(tokens[kind])
        assert jwt.get_unverified_header(tokens[kind])["alg"] == "HS256"
        assert (claims["token_type"], claims["user_id"], claims["sub"]) == (kind, "alice", "alice")
        assert lifetime_s - 60 < claims["exp"] - time.time() <= lifetime_s + 1
    assert len({said(token)["jti"] for token in tokens.values()}) == 3


def test_a_wrong_password_is_401(server: RunningServer) -> None:
    """In the words of simplejwt, the same whether the user is there or not."""
    for fields in ({"username": "alice", "password": "x"}, {"username": "nobody", "password": "x"}):
        answer = post(server, TOKEN, fields)
        assert problem(answer, 401)["detail"] == NOT_FOUND
        assert answer.headers["Www-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"username": "This field is required.", "password": "This field is required."}),
        ({"username": "alice"}, {"password": "This field is required."}),
        ({"username": "", "password": "x"}, {"username": "This field may not be blank."}),
        ({"username": None, "password": "x"}, {"username": "This field may not be null."}),
        ({"username": ["a"], "password": "x"}, {"username": "Not a valid string."}),
        (
            {"username": "\ud800", "password": "\udfff"},
            dict.fromkeys(("username", "password"), "Not a valid string."),
        ),
    ],
)
def test_missing_and_wrong_fields_are_named(
    server: RunningServer, fields: dict[str, Any], expected: dict[str, str]
) -> None:
    """All of them at once, as Django REST framework names them; beside that as a problem with the first."""
    body = problem(post(server, TOKEN, fields), 400)
    assert {name: body[name] for name in ("username", "password") if name in body} == {
        name: [why] for name, why in expected.items()
    }
    assert body["field"] == next(iter(expected))
    assert next(iter(expected.values())) in body["detail"]


@pytest.mark.parametrize("path", [TOKEN, REFRESH, VERIFY])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 50_000])
def test_what_is_no_object_is_400(server: RunningServer, path: str, body: bytes) -> None:
    """With simplejwt's name for the whole."""
    assert problem(server.request("POST", path, body), 400)["non_field_errors"]


def test_a_page_of_another_origin_may_ask(server: RunningServer) -> None:
    """Preflight, answer and refusal all carry the headers; demo users answer callers of this machine only."""
    preflight = server.request("OPTIONS", TOKEN, headers={"Origin": "https://shop.example"})
    assert (preflight.status, preflight.body) == (204, b"")
    body = json.dumps({"username": "alice", "password": "alice"}).encode()
    answer = server.request("POST", TOKEN, body, {"Origin": "https://shop.example"})
    assert answer.status == 401
    for each in (preflight, answer):
        assert each.headers["Access-Control-Allow-Origin"] == "*"
        assert "authorization" in each.headers["Access-Control-Allow-Headers"]


# -- refresh -------------------------------------------------------------------------------------------------
def test_a_refresh_token_is_worth_new_tokens(server: RunningServer, tokens: dict[str, str]) -> None:
    """Access and identity, as often as one likes; no new refresh token."""
    for _ in range(2):
        new = must(post(server, REFRESH, {"refresh": tokens["refresh"]}))
        assert new.keys() == {"access", "identity"}
        assert said(new["identity"])["user_id"] == "alice"
        assert is_authenticated(server, f"Bearer {new['access']}").status == 200


def test_nothing_else_is_worth_anything_there(server: RunningServer, tokens: dict[str, str]) -> None:
    """Access, identity, forged, garbage: 401 with simplejwt's code. Missing: 400."""
    forged = jwt.encode(
        said(tokens["refresh"]), "0" * 43, "HS256", jwt.get_unverified_header(tokens["refresh"])
    )
    for token in (tokens["access"], tokens["identity"], forged, "x", "a.b.c", "x" * 5000):
        assert problem(post(server, REFRESH, {"refresh": token}), 401).items() >= INVALID.items()
    assert problem(post(server, REFRESH, {}), 400)["refresh"] == ["This field is required."]


# -- verify, is-authenticated --------------------------------------------------------------------------------
def test_verify_takes_each_kind(server: RunningServer, tokens: dict[str, str]) -> None:
    """200 and `{}`; else 401 with simplejwt's code."""
    for token in tokens.values():
        answer = post(server, VERIFY, {"token": token})
        assert (answer.status, answer.json()) == (200, {})
    for token in ("x", tokens["access"][:-3] + "AAA"):
        assert problem(post(server, VERIFY, {"token": token}), 401).items() >= INVALID.items()
    assert problem(post(server, VERIFY, {}), 400)["token"] == ["This field is required."]


def test_is_authenticated_says_whether(server: RunningServer, tokens: dict[str, str]) -> None:
    """200 by an access or identity token; 401 with the words of the framework by none, another scheme, a wrong one, or
    a refresh token."""
    for kind in ("access", "identity"):
        assert is_authenticated(server, f"Bearer {tokens[kind]}").status == 200
    for none in (None, "", "Bearer", "Bearer  ", f"Token {tokens['access']}"):
        answer = is_authenticated(server, none)
        assert problem(answer, 401)["detail"] == "Authentication credentials were not provided."
        assert answer.headers["Www-Authenticate"].startswith("Bearer")
    for wrong in ("x", tokens["refresh"], "a.b.c", "\xff", "x" * 20_000):
        body = problem(is_authenticated(server, f"Bearer {wrong}"), 401)
        assert body["detail"] == "Given token not valid for any token type"
        assert body["code"] == "token_not_valid"
        assert body["messages"][0]["message"] == "Token is invalid or expired"


# -- what they are worth elsewhere ---------------------------------------------------------------------------
async def test_a_refresh_token_lets_nobody_listen(server: RunningServer, tokens: dict[str, str]) -> None:
    """By no door; the identity token does by all."""
    assert (await refused(server, f"/ws?token={tokens['refresh']}"))[0] == 401
    assert (await refused(server, f"/ws/notifications/alice/?token={tokens['refresh']}"))[0] == 403
    async with SocketClient(server) as client:
        refusal = await client.refusal("join", {"token": tokens["refresh"]})
        assert refusal["code"] == "bad_credentials"
        await client.join_by_token(tokens["identity"])
    async with listening(server, f"/ws?token={tokens['identity']}"):
        pass


def test_no_user_token_publishes(server: RunningServer, tokens: dict[str, str]) -> None:
    """Those of users are not those of services."""
    body = json.dumps({"userIds": [1], "payload": {}}).encode()
    for token in tokens.values():
        headers = {"Authorization": f"Bearer {token}"}
        assert server.request("POST", "/api/realtime/internal/notify", body, headers).status == 403


async def test_sign_out_voids_them_all(tmp_path: Path) -> None:
    """Access, identity and refresh, at every door; a new sign-in is worth new ones. Others keep theirs."""
    (tmp_path / "config.ini").write_text(
        f"[USERS-DEBUG]\ndave={hash_password(PASSWORD)}\nerin={hash_password(PASSWORD)}\n"
    )
    with RunningServer(tmp_path) as server:
        tokens, others = obtain(server, "dave", PASSWORD), obtain(server, "erin", PASSWORD)
        async with listening(server, f"/ws?token={tokens['identity']}") as client:
            assert server.run("user", "sign-out", "dave").returncode == 0
            assert await client.closed() == (3501, "signed_out")
        assert problem(post(server, REFRESH, {"refresh": tokens["refresh"]}), 401).items() >= INVALID.items()
        for token in tokens.values():
            assert post(server, VERIFY, {"token": token}).status == 401
            assert is_authenticated(server, f"Bearer {token}").status == 401
        assert (await refused(server, f"/ws?token={tokens['identity']}"))[0] == 401
        must(post(server, REFRESH, {"refresh": others["refresh"]}))
        new = obtain(server, "dave", PASSWORD)
        must(post(server, REFRESH, {"refresh": new["refresh"]}))


def test_a_sign_out_by_a_machine_whose_clock_is_ahead(tmp_path: Path) -> None:
    """Voids what was given before it, and nothing that is given after it: for a password, or a new refresh token."""
    with RunningServer(tmp_path) as server:
        old = obtain(server)
        config = load(None, {"NOTIFY_APPLICATION_DATA": str(server.data)})

        async def sign_out() -> None:
            async with open_beside(config) as beside:
                await beside.directory.sign_out("default", "alice", now() + timedelta(minutes=5))

        asyncio.run(sign_out())
        wait_until(
            lambda: is_authenticated(server, f"Bearer {old['access']}").status == 401,
            "the server knowing of it",
        )
        new = obtain(server)
        refreshed = must(post(server, REFRESH, {"refresh": new["refresh"]}))
        for token in (new["access"], new["identity"], refreshed["access"], refreshed["identity"]):
            assert is_authenticated(server, f"Bearer {token}").status == 200
        problem(post(server, REFRESH, {"refresh": old["refresh"]}), 401)


def test_tokens_outlive_the_server(tmp_path: Path) -> None:
    """The secret that signs them lies in the store."""
    with RunningServer(tmp_path) as server:
        tokens = obtain(server)
        server.kill()
        server.start()
        must(post(server, REFRESH, {"refresh": tokens["refresh"]}))


def test_no_password_or_token_gets_into_the_log(server: RunningServer) -> None:
    """Nor the login, where people type their password."""
    post(server, TOKEN, {"username": "typed-by-mistake", "password": "geheim-9f8e"})
    tokens = obtain(server)
    post(server, VERIFY, {"token": tokens["access"]})
    for secret in ("typed-by-mistake", "geheim-9f8e", "eyJ"):
        assert secret not in server.log


def test_who_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    """429 with Retry-After, counted by the address behind a trusted proxy."""
    limits = {
        "NOTIFY_LIMITS_REQUESTS_PER_ADDRESS": "2/60s",
        "NOTIFY_APPLICATION_TRUSTED_PROXIES": "127.0.0.1",
    }
    with RunningServer(tmp_path, **limits) as server:
        headers = {"X-Forwarded-For": "198.51.100.7"}
        answers = [server.request("POST", VERIFY, b'{"token":"x"}', headers) for _ in range(3)]
        assert [answer.status for answer in answers] == [401, 401, 429]
        assert int(answers[-1].headers["Retry-After"]) >= 1


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=20),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
names = ("username", "password", "refresh", "token")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from([REFRESH, VERIFY, TOKEN]),
    fields=st.fixed_dictionaries({}, optional=dict.fromkeys(names, json_values)),
    raw=st.none() | st.binary(max_size=40),
)
def test_no_body_hurts(server: RunningServer, path: str, fields: dict[str, Any], raw: bytes | None) -> None:
    """Refused with a reason: never a 5xx."""
    if path == TOKEN:
        fields.pop("password", None)  # guesses are slowed down, and this test would be
    answer = server.request("POST", path, json.dumps(fields).encode() if raw is None else raw)
    assert answer.status in (400, 401)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "Traceback" not in server.log
