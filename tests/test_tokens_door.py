"""`POST /api/v2/tokens` and `POST /api/v2/users/{id}/sign-out`: what they take and answer, and what becomes of the
connections."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
import pytest

from server.config import load
from server.grants import ApiKey, Scope, hash_secret, new_secret
from server.ids import new_id
from server.messages import now
from server.store.sqlite_beside import SQLiteBeside
from server.wiring import EMBEDDED_FILE, open_beside
from tests.support.backends import Backend, add_key, add_tenant, known
from tests.support.client import SocketClient
from tests.support.command import STORES
from tests.support.house import House, contents, joined, open_house
from tests.support.jwt_keys import hs256
from tests.support.processes import wait_until
from tests.support.running_server import Response, RunningServer
from tests.support.sockjs_clients import DOORS

APIKEY = "the key of config.ini"
SERVICES_SECRET = "what signs the tokens of services, and nothing else"
MAX_TOKEN_S = 600

TOKENS, SIGN_OUT = "/api/v2/tokens", "/api/v2/users/alice/sign-out"


@pytest.fixture(scope="module", params=STORES)
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    settings = {
        "NOTIFY_APPLICATION_APIKEY": APIKEY,
        "NOTIFY_AUTH_MAX_TOKEN_S": str(MAX_TOKEN_S),
        "NOTIFY_SERVICE_JWT_SECRET": SERVICES_SECRET,
    }
    with open_house(request.param, request, tmp_path_factory.mktemp("tokens"), **settings) as house:
        yield house


def problem(response: Response) -> tuple[int, str, str | None]:
    """Status, code and field of a refusal; its shape is checked."""
    assert response.headers["Content-Type"] == "application/problem+json"
    fields = response.json()
    assert fields["type"] == "about:blank"
    assert fields["status"] == response.status
    assert fields["detail"]
    return response.status, fields["title"], fields.get("field")


def post(house: House, path: str, headers: dict[str, str], body: bytes = b'{"user_id": "alice"}') -> Response:
    return house.server.request("POST", path, body, headers)


async def refusal(server: RunningServer, token: str) -> str:
    """The code by which a join by this token is refused."""
    async with SocketClient(server) as client:
        code: str = (await client.refusal("join", {"token": token}))["code"]
        return code


# -- the answer ----------------------------------------------------------------------------------------------
def test_the_answer_is_a_token_and_when_it_ends(house: House, user: str) -> None:
    """It says whose it is and nothing of the key's secret; two are never equal; no cache keeps them."""
    before = datetime.now(UTC)
    answer = house.a.make_token(user, expires_in=60)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.headers["Cache-Control"] == "no-store"
    assert sorted(answer.json()) == ["expires_at", "token"]
    expires_at, token = answer.json()["expires_at"], answer.json()["token"]
    said = jwt.decode(token, options={"verify_signature": False})
    assert (said["sub"], said["tenant"]) == (user, "a")
    assert house.a.key not in json.dumps(said)
    assert expires_at.endswith(".000Z")
    ends = datetime.fromisoformat(expires_at)
    assert ends == datetime.fromtimestamp(said["exp"], UTC)
    assert before + timedelta(seconds=60) <= ends < datetime.now(UTC) + timedelta(seconds=61)
    assert house.a.token(user, expires_in=60) != token


@pytest.mark.parametrize(
    ("fields", "life_s"),
    [
        ({}, MAX_TOKEN_S),
        ({"expires_in": None}, MAX_TOKEN_S),
        ({"expires_in": MAX_TOKEN_S}, MAX_TOKEN_S),
        ({"expires_in": 1}, 1),
        ({"expires_in": 1.5}, 1.5),
        ({"expires_in": 60, "unknown": "ignored"}, 60),
    ],
)
def test_how_long_a_token_is_good(house: House, fields: dict[str, Any], life_s: float) -> None:
    """As asked for, up to the next full second; unasked as long as any may be."""
    before = time.time()
    ends = datetime.fromisoformat(house.a.make_token("alice", **fields).json()["expires_at"]).timestamp()
    assert math.ceil(before + life_s) <= ends <= math.ceil(time.time() + life_s)


@pytest.mark.parametrize(
    "expires_in",
    [0, 0.999, -1, MAX_TOKEN_S + 1, MAX_TOKEN_S + 0.001, 10**400, True, "60", [60], {}, math.nan, math.inf],
)
def test_a_life_out_of_bounds_is_refused(house: House, expires_in: Any) -> None:
    """It names the field and the bounds."""
    answer = house.a.make_token("alice", expires_in=expires_in)
    assert problem(answer) == (400, "invalid", "expires_in")
    assert f"from 1 to {MAX_TOKEN_S}" in answer.json()["detail"]


@pytest.mark.parametrize(
    "user_id", [None, "", True, 1.0, [], {}, ["alice"], "\ud800", "x" * 1025, "ä" * 513, 10**1025]
)
def test_what_is_no_user_id_is_refused(house: House, user_id: Any) -> None:
    """It names the field; the id itself is not repeated."""
    answer = house.a.make_token(user_id)
    assert problem(answer) == (400, "invalid", "user_id")
    assert len(answer.body) < 300


def test_the_user_id_is_needed(house: House) -> None:
    """Nobody is taken for somebody."""
    assert problem(house.a.post(TOKENS, {"expires_in": 60})) == (400, "invalid", "user_id")


@pytest.mark.parametrize("user_id", [7, "ä" * 512, " a b ", "a/b?c#d%2F", "日本\n\x00", "x" * 1024])
async def test_any_other_user_id_joins(house: House, user_id: Any) -> None:
    """A number is the same user as its text; and by whatever signs it out, it is signed out."""
    house.a.must_notify(str(user_id), content="for you")
    async with SocketClient(house.server) as client:
        [document] = await client.join_by_token(house.a.make_token(user_id).json()["token"])
        assert (document["_userId"], document["content"]) == (str(user_id), "for you")
        assert house.a.sign_out(str(user_id)).status == 204
        assert await client.closed() == (3501, "signed_out")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"alice"', b"null", b"\xff\xfe", b"user_id=alice", b"[" * 50_000], ids=repr
)
def test_a_body_that_is_no_json_object_is_refused(house: House, body: bytes) -> None:
    """As a whole."""
    assert problem(post(house, TOKENS, house.a.credentials, body)) == (400, "invalid", "")


def test_an_overlong_body_is_refused(house: House) -> None:
    """These doors need little."""
    answer = house.a.make_token("alice", filler="x" * 70_000)
    assert problem(answer) == (413, "too_large", "")


@pytest.mark.parametrize("path", [TOKENS, SIGN_OUT])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_405(house: House, path: str, method: str) -> None:
    """Nothing is changed by a link."""
    assert house.server.request(method, path, None, house.a.credentials).status == 405


def test_whom_nobody_can_be_is_not_signed_out(house: House) -> None:
    """An empty id is no address at all."""
    assert problem(house.a.sign_out("x" * 1025)) == (400, "invalid", "user_id")
    assert house.a.sign_out("").status == 404


def test_signing_out_needs_no_body(house: House, user: str) -> None:
    """Whatever is in it is not looked at; the answer is empty, also for a user nobody knows, and again."""
    path = f"/api/v2/users/{quote(user)}/sign-out"
    for body in (b"", b"no JSON", b"{}"):
        answer = post(house, path, house.a.credentials, body)
        assert (answer.status, answer.body) == (204, b"")


# -- who may -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("path", "needed", "good"),
    [(TOKENS, "listen", 200), (SIGN_OUT, "admin", 204)],
    ids=["tokens", "sign-out"],
)
def test_the_scope_decides(house: House, path: str, needed: str, good: int) -> None:
    """One scope does not stand for another; that it is missing is said only to who has a key."""
    for scope in ("publish", "listen", "admin"):
        backend = known(add_key(house.server, "a", f"{scope}-{new_id()}", scope))
        answer = backend.post(path, {"user_id": "alice"})
        if scope == needed:
            assert answer.status == good
        else:
            assert problem(answer) == (403, "refused", None)
            assert f"has not the scope {needed}" in answer.json()["detail"]


@pytest.mark.parametrize("path", [TOKENS, SIGN_OUT])
def test_without_a_credential_it_is_401(house: House, path: str) -> None:
    """The answer says what to send; a key in the body is none here."""
    for body in (b"{}", json.dumps({"user_id": "alice", "apikey": house.a.key}).encode()):
        answer = post(house, path, {}, body)
        assert problem(answer) == (401, "no_credentials", None)
        headers = {name.lower(): value for name, value in answer.headers.items()}
        assert headers["www-authenticate"] == "Api-Key"
        assert "Authorization: Api-Key" in answer.json()["detail"]


@pytest.mark.parametrize("path", [TOKENS, SIGN_OUT])
def test_being_on_this_machine_is_no_credential(
    request: pytest.FixtureRequest, tmp_path: Path, path: str
) -> None:
    """Even where it is one for publishing."""
    with open_house("embedded", request, tmp_path) as house:
        assert house.server.notify("alice").status == 200
        assert problem(post(house, path, {})) == (401, "no_credentials", None)


@pytest.mark.parametrize("path", [TOKENS, SIGN_OUT])
@pytest.mark.parametrize(
    "form", ["Authorization: Api-Key {}", "Authorization: bearer {}", "internal-api-key: {}"]
)
def test_a_wrong_key_is_403(house: House, path: str, form: str) -> None:
    """Of whatever form; whatever else is wrong; a right one is taken in each of them."""
    name, _, value = form.partition(": ")
    for wrong in (new_secret(), "x", house.a.key[:-1], house.a.key + "x", ""):
        answer = post(house, path, {name: value.format(wrong)}, b"no JSON")
        assert problem(answer) == (403, "bad_credentials", None)
        assert wrong not in answer.json()["detail"] or len(wrong) < 2
    assert post(house, path, {name: value.format(house.a.key)}).status in (200, 204)


@pytest.mark.parametrize("path", [TOKENS, SIGN_OUT])
def test_the_apikey_of_the_config_publishes_only(house: House, path: str) -> None:
    """It is as old as C1, which has no such doors."""
    for headers in ({"Authorization": f"Api-Key {APIKEY}"}, {"internal-api-key": APIKEY}):
        assert problem(post(house, path, headers)) == (403, "refused", None)


def test_tokens_are_made_for_keys_only(house: House) -> None:
    """A service without one, though it may listen, has nothing that could be revoked; it may sign users out."""

    def service(scope: str) -> dict[str, str]:
        said = {"sub": "shop", "tenant": "a", "scope": scope, "exp": time.time() + 600}
        return {"Authorization": f"Bearer {hs256(said, SERVICES_SECRET)}"}

    answer = post(house, TOKENS, service("listen"))
    assert problem(answer) == (403, "refused", None)
    assert "for API keys only" in answer.json()["detail"]
    assert post(house, SIGN_OUT, service("admin")).status == 204
    assert problem(post(house, SIGN_OUT, service("listen publish"))) == (403, "refused", None)


async def test_a_token_is_no_key(house: House, user: str) -> None:
    """Who may listen as somebody may do nothing else; nor does a key join."""
    token = house.a.token(user)
    for path in (TOKENS, SIGN_OUT, "/notify"):
        for headers in ({"Authorization": f"Bearer {token}"}, {"internal-api-key": token}):
            assert post(house, path, headers).status == (400 if path == "/notify" else 403)
    assert await refusal(house.server, house.a.key) == "bad_credentials"


@pytest.mark.parametrize("path", [TOKENS, SIGN_OUT])
def test_who_asks_too_often_is_told_when_to_come_back(
    request: pytest.FixtureRequest, tmp_path: Path, path: str
) -> None:
    """Requests of one key count together, whether or not they are refused for something else."""
    with open_house("embedded", request, tmp_path, NOTIFY_LIMITS_REQUESTS_PER_KEY="10/1h") as house:
        statuses = {house.a.post(path, {}).status for _ in range(10)}
        assert statuses <= {204, 400, 429}
        answer = house.a.post(path, {"user_id": "alice"})
        assert problem(answer) == (429, "rate_limited", None)
        assert int(answer.headers["Retry-After"]) > 0


async def test_a_tenant_that_signs_out_too_many(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Is refused, whichever key it shows; nobody is signed out then, and the other tenants may go on."""
    with open_house("embedded", request, tmp_path, NOTIFY_LIMITS_SIGN_OUTS_PER_TENANT="2/1h") as house:
        assert [house.a.sign_out(user).status for user in ("alice", "bob", "alice")] == [204, 204, 429]
        token = house.a.token("carol")
        another = known(add_key(house.server, "a", "another", "admin"))
        answer = another.sign_out("carol")
        assert problem(answer) == (429, "rate_limited", None)
        assert answer.headers["Ratelimit"].startswith('"sign_outs_per_tenant";r=0;t=')
        async with SocketClient(house.server) as client:
            assert await client.join_by_token(token) == []
        assert house.b.sign_out("carol").status == 204


# -- joining by a token --------------------------------------------------------------------------------------
@pytest.mark.parametrize("door", DOORS)
async def test_a_connection_ends_with_its_token(house: House, user: str, door: str) -> None:
    """By a code of its own, at every door; then the token is expired."""
    token = house.a.token(user, expires_in=1)
    async with DOORS[door](house.server) as client:
        assert await client.join_by_token(token) == []
        assert await client.closed() == (3005, "token_expired")
    assert await refusal(house.server, token) == "token_expired"


async def test_another_join_before_extends_it(house: House, user: str) -> None:
    """The connection outlives the first token by as much as the second one does; what is pushed meanwhile comes."""
    short = house.a.token(user, expires_in=2)
    async with SocketClient(house.server) as extended, SocketClient(house.server) as other:
        for client in (extended, other):
            await client.join_by_token(short)
        await extended.join_by_token(house.a.token(user))
        assert await other.closed() == (3005, "token_expired")
        house.a.must_notify(user, content="still here")
        assert contents(await extended.next("notification")) == ["still here"]


async def test_another_join_may_shorten_it(house: House, user: str) -> None:
    """The last proof counts, whichever ends first."""
    async with joined(house.a, user) as client:
        await client.join_by_token(house.a.token(user, expires_in=1))
        assert await client.closed() == (3005, "token_expired")


async def test_a_join_that_fails_changes_nothing(house: House, user: str) -> None:
    """The connection still ends with its first token."""
    token = house.a.token(user, expires_in=2)
    async with SocketClient(house.server) as client:
        await client.join_by_token(token)
        assert (await client.refusal("join", {"token": token + "x"}))["code"] == "bad_credentials"
        house.a.must_notify(user, content="as before")
        assert contents(await client.next("notification")) == ["as before"]
        assert await client.closed() == (3005, "token_expired")


async def test_who_leaves_is_not_ended_by_the_token(house: House, user: str) -> None:
    """Nor who is somebody else since."""
    short = house.a.token(user, expires_in=1)
    async with AsyncExitStack() as stack:
        left, changed, other = [await stack.enter_async_context(SocketClient(house.server)) for _ in range(3)]
        for client in (left, changed, other):
            await client.join_by_token(short)
        await left.send("leave")
        await changed.join_by_token(house.a.token(f"{user}-2"))
        assert await other.closed() == (3005, "token_expired")
        assert (await left.refusal("unseen", {}))["code"] == "not_joined"
        assert await changed.content() == []


@pytest.mark.parametrize(
    "data",
    [
        {"token": ""},
        {"token": ["x"]},
        {"token": None},
        {"token": "x" * 8193},
        {"token": "x", "login": "alice"},
    ],
    ids=repr,
)
async def test_what_is_no_token_is_invalid(house: House, data: Any) -> None:
    """Which is not the same as wrong."""
    async with SocketClient(house.server) as client:
        error = await client.refusal("join", data)
    assert (error["code"], error["field"]) == ("invalid", "data.token")


# -- signing out ---------------------------------------------------------------------------------------------
async def test_signing_out_ends_all_connections_of_the_user(house: House, user: str) -> None:
    """At every door; and of nobody else. Tokens made before are void, also those never used; later ones are good."""
    unused, other = house.a.token(user), f"{user}-2"
    async with AsyncExitStack() as stack:
        ending = [await stack.enter_async_context(joined(house.a, user, door)) for door in DOORS]
        staying = await stack.enter_async_context(joined(house.a, other))
        assert house.a.sign_out(user).status == 204
        for client in ending:
            assert await client.closed(within_s=5) == (3501, "signed_out")
        house.a.must_notify(other, content="not you")
        assert contents(await staying.next("notification")) == ["not you"]
    assert await refusal(house.server, unused) == "bad_credentials"
    async with joined(house.a, user) as client:
        assert await client.content() == []


async def test_who_is_signed_out_comes_back_with_the_password(house: House) -> None:
    """The connection by password ends as well; the password is as good as before."""
    async with SocketClient(house.server) as client:
        await client.join("bob")
        assert house.default.sign_out("bob").status == 204
        assert await client.closed() == (3501, "signed_out")
    async with SocketClient(house.server) as client:
        await client.join("bob")
        assert (await client.refusal("join", {"login": "bob", "password": "wrong"}))[
            "code"
        ] == "bad_credentials"


async def test_signing_out_by_the_command_line_is_the_same(house: House, user: str) -> None:
    """Within a second of the other process's word."""
    token = house.a.token(user)
    async with SocketClient(house.server) as client:
        await client.join_by_token(token)
        command = ("user", "sign-out", user, "--tenant", "a")
        assert (await asyncio.to_thread(house.server.run, *command)).returncode == 0
        assert await client.closed(within_s=5) == (3501, "signed_out")
    assert await refusal(house.server, token) == "bad_credentials"


async def test_a_sign_out_outlives_the_server(
    request: pytest.FixtureRequest, tmp_path: Path, user: str
) -> None:
    """It is answered when it is stored, on both stores."""
    for kind in STORES:
        folder = tmp_path / kind
        folder.mkdir()
        with open_house(kind, request, folder) as house:
            void, server = house.a.token(user), house.server
            assert house.a.sign_out(user).status == 204
            good = house.a.token(user)
            server.kill()
            await asyncio.to_thread(server.start)
            assert await refusal(server, void) == "bad_credentials"
            async with SocketClient(server) as client:
                assert await client.join_by_token(good) == []


# -- the key behind a token ----------------------------------------------------------------------------------
async def test_a_revoked_key_ends_what_was_made_with_it(house: House, user: str) -> None:
    """Its connections and its tokens, at every door; not those of the tenant's other keys, nor a connection that has
    joined again by another one since."""
    leaked = known(add_key(house.server, "a", f"leaked-{user}", "listen"))
    token = leaked.token(user)
    async with AsyncExitStack() as stack:
        ending = [await stack.enter_async_context(joined(leaked, user, door)) for door in DOORS]
        staying = await stack.enter_async_context(joined(house.a, user))
        moved = await stack.enter_async_context(joined(leaked, user))
        await moved.join_by_token(house.a.token(user))
        await asyncio.to_thread(house.server.must_run, "key", "revoke", "a", f"leaked-{user}")
        for client in ending:
            assert await client.closed(within_s=5) == (3500, "revoked")
        assert problem(leaked.make_token(user)) == (403, "bad_credentials", None)
        house.a.must_notify(user, content="you stay")
        for client in (staying, moved):
            assert contents(await client.next("notification")) == ["you stay"]
    assert await refusal(house.server, token) == "bad_credentials"


async def test_a_password_does_not_end_with_a_key(house: House) -> None:
    """Whatever key of its tenant is revoked."""
    name = f"other-{new_id()}"
    key = known(add_key(house.server, "default", name, "listen"))
    async with SocketClient(house.server) as by_password, joined(key, "alice") as by_token:
        await by_password.join("alice")
        await asyncio.to_thread(house.server.must_run, "key", "revoke", "default", name)
        assert await by_token.closed(within_s=5) == (3500, "revoked")
        house.default.must_notify("alice", content="you stay")
        assert contents(await by_password.next("notification"))[-1] == "you stay"


async def test_no_token_outlives_its_key(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A key that ends by itself takes them with it, and says so beforehand."""
    with open_house("embedded", request, tmp_path) as house:
        secret, ends_at = new_secret(), now() + timedelta(seconds=4)
        scopes = frozenset({Scope.LISTEN})
        await add_to_store(
            house.server, ApiKey(new_id(), "a", "short", hash_secret(secret), scopes, now(), ends_at)
        )
        short = known(Backend(house.server, "a", secret))
        answer = short.make_token("alice", expires_in=60).json()
        ends = math.ceil(ends_at.timestamp())
        assert datetime.fromisoformat(answer["expires_at"]).timestamp() == ends
        async with SocketClient(house.server) as client:
            await client.join_by_token(answer["token"])
            assert await client.closed() == (3005, "token_expired")
        assert problem(short.make_token("alice")) == (403, "bad_credentials", None)
        assert await refusal(house.server, answer["token"]) == "token_expired"


async def add_to_store(server: RunningServer, key: ApiKey) -> None:
    """From beside the server, sooner than the command does it, and with an end that it would not take."""
    beside = SQLiteBeside(server.data / EMBEDDED_FILE)
    await beside.open()
    try:
        await beside.directory.add_key(key)
    finally:
        await beside.close()


async def test_a_sign_out_by_a_machine_whose_clock_is_ahead(house: House) -> None:
    """Ends what was before it, and keeps nobody out who proves anew who they are, by password or by a new token."""
    server, old = house.server, house.default.token("alice")
    async with SocketClient(server) as first, SocketClient(server) as second:
        await first.join_by_token(old)
        await second.join("alice")
        config = load(None, {"NOTIFY_APPLICATION_DATA": str(server.data), **house.store})
        async with open_beside(config) as beside:
            await beside.directory.sign_out("default", "alice", now() + timedelta(minutes=5))
        for client in (first, second):
            assert await client.closed() == (3501, "signed_out")
    assert await refusal(server, old) == "bad_credentials"
    async with SocketClient(server) as first, SocketClient(server) as second:
        await first.join("alice")
        await second.join_by_token(house.default.token("alice"))
        assert house.default.sign_out("alice").status == 204
        for client in (first, second):
            assert await client.closed() == (3501, "signed_out")


@pytest.mark.parametrize("kind", STORES)
async def test_a_new_secret_voids_the_tokens_of_the_old_one_if_that_is_meant(
    request: pytest.FixtureRequest, tmp_path: Path, user: str, kind: str
) -> None:
    """Else they are good until they end, and who is in stays in. Connections by voided ones end within a second."""
    with open_house(kind, request, tmp_path) as house:
        server, first = house.server, house.a.token(user)

        def signer() -> str:
            kid: str = jwt.get_unverified_header(house.a.token(user))["kid"]
            return kid

        async with SocketClient(server) as client:
            await client.join_by_token(first)
            for options, is_good in (([], True), (["--at-once"], False)):
                before, old = signer(), house.a.token(user)
                assert server.run("secret", "rotate", *options).returncode == 0
                await asyncio.to_thread(wait_until, partial(_differs, signer, before), "the new secret")
                async with joined(house.a, user), SocketClient(server) as second:
                    if is_good:
                        assert await second.join_by_token(old) == []
                        house.a.must_notify(user, content="still in")
                        assert contents(await client.next("notification")) == ["still in"]
                    else:
                        assert (await second.refusal("join", {"token": old}))["code"] == "bad_credentials"
            assert await client.closed() == (3005, "token_expired")


def _differs(ask: Any, before: str) -> bool:
    return bool(ask() != before)


# -- what is left behind -------------------------------------------------------------------------------------
async def test_no_key_and_no_token_is_in_the_log(house: House, user: str) -> None:
    """Whether they were taken or refused; nor is who was signed out."""
    token = house.a.token(user)
    async with joined(house.a, user), SocketClient(house.server) as client:
        await client.join_by_token(token)
        assert house.a.sign_out(user).status == 204
    assert await refusal(house.server, token) == "bad_credentials"
    wrong = new_secret()
    assert post(house, TOKENS, {"internal-api-key": wrong}).status == 403
    refused = Backend(house.server, "a", wrong).post("/notify?apikey=" + wrong, {"content": "x"})
    assert refused.status == 400
    log = house.server.log
    assert "signed out everywhere: tenant=a" in log
    for secret in (token, token.split(".")[1], house.a.key, wrong):
        assert secret not in log


def test_a_new_tenants_first_key_may_do_everything(house: House, user: str) -> None:
    """So that nobody needs a second one to begin with."""
    acme = known(add_tenant(house.server, f"acme-{user}"))
    assert [acme.notify(user).status, acme.make_token(user).status, acme.sign_out(user).status] == [
        200,
        200,
        204,
    ]
