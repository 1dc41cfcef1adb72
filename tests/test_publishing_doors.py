"""The publishing doors of CONTRACT C3, C4 and C5 over HTTP, from outside."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.client import SocketClient
from tests.support.command import STORES, store_settings
from tests.support.feeds import (
    SETTINGS,
    add_key,
    add_tenant,
    hub_path,
    internal,
    listening,
    metrics,
    must,
    post,
    user_token,
)
from tests.support.lane import PORTS
from tests.support.mongod import Mongod
from tests.support.running_server import Response, RunningServer

SEND = "/api/notifications/send/"
INTERNAL = "/api/realtime/internal/notify"

C3: dict[str, Any] = {"user_id": 1, "payload": {"a": 1}}
C4: dict[str, Any] = {"userIds": ["1"], "payload": {"a": 1}}
C5: dict[str, Any] = {"title": "T", "message": "M"}
DOORS = [(SEND, C3), (INTERNAL, C4), (SEND, C5)]
each_door = pytest.mark.parametrize(("path", "fields"), DOORS, ids=["C3", "C4", "C5"])

SERVICE_SECRET = "7a" * 32


@pytest.fixture(scope="module", params=PORTS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    more = {"NOTIFY_SERVICE_JWT_SECRET": SERVICE_SECRET, "NOTIFY_SERVICE_JWT_AUDIENCE": "notifications"}
    with request.param(tmp_path_factory.mktemp("doors"), **SETTINGS, **more) as running:
        yield running


@pytest.fixture(scope="module")
def acme(server: RunningServer) -> str:
    """The key of a tenant, for everything."""
    return add_tenant(server, "acme")


def problem(answer: Response, status: int, code: str, field: str | None = None) -> dict[str, Any]:
    """The body of a refusal, which is one of RFC 9457 of this kind."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    said: dict[str, Any] = answer.json()
    assert (answer.status, said["status"], said["title"], said.get("field")) == (status, status, code, field)
    assert said["detail"]
    return said


# -- what goes well ------------------------------------------------------------------------------------------
async def test_c3_answers_with_what_it_was_sent(server: RunningServer, user: str) -> None:
    """200 and both fields as they were; with and without the slash at the end; ids are texts or integers."""
    for path in (SEND, SEND.rstrip("/")):
        for user_id in (user, 7):
            for payload in ({"x": "é", "n": 10**25}, [1], "text", 0, False, ""):
                fields = {"user_id": user_id, "payload": payload}
                answer = post(server, path, fields)
                assert (answer.status, answer.json()) == (200, fields)
                assert answer.headers["Content-Type"] == "application/json"


async def test_an_integer_and_its_text_are_one_user(server: RunningServer) -> None:
    """At C3 as at C4, where a user named twice gets one document."""
    number = str(uuid4().int)
    async with listening(server, hub_path(number)) as client:
        must(post(server, SEND, {"user_id": int(number), "payload": 1}))
        must(post(server, INTERNAL, {"userIds": [int(number), number], "payload": {"n": 2}}))
        must(post(server, SEND, {"user_id": number, "payload": 3}))
        assert [frame["payload"] for frame in await client.frames(3)] == [1, {"n": 2}, 3]


@pytest.mark.parametrize("kind", STORES)
async def test_a_202_of_c4_is_durable(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    """`{"status": "queued"}` and the id; after SIGKILL at once all users have it, once each."""
    users = [f"user-{number}" for number in range(200)]
    with store_settings(kind, request) as settings, RunningServer(tmp_path, **SETTINGS, **settings) as server:
        answer = post(server, INTERNAL, {"userIds": [*users, *users], "payload": {"type": "t", "n": 1}})
        server.kill()
        assert answer.status == 202
        assert answer.json().keys() == {"status", "id"}
        assert answer.json()["status"] == "queued"
        server.start()
        shown = must(server.request("GET", f"/api/notifications/{answer.json()['id']}/deliveries?limit=1000"))
        assert [delivery["user_id"] for delivery in shown["deliveries"]] == sorted(users)


async def test_the_type_of_a_c4_payload_is_that_of_the_notification(server: RunningServer, user: str) -> None:
    """Where it is a text that fits, else `notification`; the payload stays as it is."""
    payloads: list[dict[str, Any]] = [
        {"type": "booking"},
        {},
        {"type": 5},
        {"type": ""},
        {"type": "x" * 5000},
    ]
    async with listening(server, hub_path(user)) as client:
        for payload in payloads:
            internal(server, [user], payload)
        frames = await client.frames(len(payloads))
    assert [frame["payload"] for frame in frames] == payloads
    assert [frame["type"] for frame in frames] == ["booking", *["notification"] * 4]


# -- who may -------------------------------------------------------------------------------------------------
@each_door
def test_without_a_key_it_is_403(tmp_path: Path, path: str, fields: dict[str, Any]) -> None:
    """Where no key is needed for nobody: no key, a wrong one, one without the scope; and nothing is stored."""
    with RunningServer(tmp_path, NOTIFY_APPLICATION_PUBLISH_WITHOUT_KEY="false") as server:
        hearing = add_key(server, "default", "hearing", "listen")
        for key, code in ((None, "no_credentials"), ("A" * 43, "bad_credentials"), (hearing, "refused")):
            said = problem(post(server, path, fields, key), 403, code)
            if path == SEND and code != "refused":
                assert said["detail"] == "Invalid API key"
        assert server.must_run("user", "known") == []
        for code in ("no_credentials", "bad_credentials", "refused"):
            assert f'notification_requests_refused_total{{code="{code}"' in metrics(server)


@each_door
def test_a_stranger_learns_nothing_of_what_is_wrong(server: RunningServer, path: str, fields: Any) -> None:
    """The body of who may not publish is not looked at: the answer is about the key, whatever the body is."""
    for body in (b"{", b"[]", b"\xff", json.dumps(fields).encode()):
        headers = {"Authorization": "Api-Key wrong"}
        problem(server.request("POST", path, body, headers), 403, "bad_credentials")


@pytest.mark.parametrize("path", [SEND, INTERNAL])
def test_a_strangers_body_is_not_read(server: RunningServer, path: str) -> None:
    """The answer is there before any of it has come."""
    headers = {"Authorization": "Api-Key wrong", "Content-Length": "1000"}
    problem(server.request("POST", path, None, headers), 403, "bad_credentials")


@pytest.mark.parametrize(
    "headers",
    [{"internal-api-key": "KEY"}, {"Authorization": "Bearer KEY"}, {"Authorization": "api-key  KEY"}],
)
@each_door
def test_a_key_may_come_in_each_header(
    server: RunningServer, acme: str, headers: dict[str, str], path: str, fields: dict[str, Any]
) -> None:
    """As each of the systems sends it."""
    headers = {name: value.replace("KEY", acme) for name, value in headers.items()}
    must(server.request("POST", path, json.dumps(fields).encode(), headers))
    headers = {name: value.replace(acme, "x" * 43) for name, value in headers.items()}
    problem(server.request("POST", path, json.dumps(fields).encode(), headers), 403, "bad_credentials")


def test_a_service_may_show_a_token(server: RunningServer) -> None:
    """C4's JWT of services; an expired, a forged one and that of a user are refused with 403."""
    good = {"aud": "notifications", "scope": "publish"}

    def headers(token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}"}

    body = json.dumps(C4).encode()
    token = user_token("billing", secret=SERVICE_SECRET, **good)
    assert server.request("POST", INTERNAL, body, headers(token)).status == 202
    for token in (
        user_token("billing", secret=SERVICE_SECRET, lifetime_s=-600, **good),
        user_token("billing", secret="00" * 32, **good),
        user_token("billing"),
    ):
        assert server.request("POST", INTERNAL, body, headers(token)).status == 403


async def test_tenants_do_not_see_each_other(server: RunningServer, acme: str, user: str) -> None:
    """What is published with a key reaches users of its tenant only."""
    async with (
        listening(server, hub_path(user, tenant="acme")) as theirs,
        listening(server, hub_path(user)) as others,
    ):
        internal(server, [user], {"n": "acme"}, acme)
        internal(server, [user], {"n": "default"})
        assert (await theirs.frame())["payload"] == {"n": "acme"}
        assert (await others.frame())["payload"] == {"n": "default"}


def test_who_publishes_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    """429, counted by key, with Retry-After and the policy; the same limit for all doors."""
    with RunningServer(tmp_path, NOTIFY_LIMITS_REQUESTS_PER_KEY="3/60s") as server:
        # Not by add_key, whose asking would count.
        key = server.must_run("key", "add", "default", "ci", "--scope", "publish")["secret"]
        answers: list[Response] = []
        while not answers or answers[-1].status in (200, 202, 403):
            path, fields = DOORS[len(answers) % 3]
            answers.append(post(server, path, fields, key))
        assert sum(answer.status in (200, 202) for answer in answers) == 3
        problem(answers[-1], 429, "rate_limited")
        assert int(answers[-1].headers["Retry-After"]) >= 1
        assert answers[-1].headers["Ratelimit-Policy"] == '"requests_per_key";q=3;w=60'
        assert answers[-1].headers["Ratelimit"].startswith('"requests_per_key";r=0')
        assert post(server, INTERNAL, C4).status == 202  # who shows no key is somebody else


# -- what is wrong -------------------------------------------------------------------------------------------
DEEP: Any = []
for _ in range(70):
    DEEP = [DEEP]

WRONG: list[tuple[str, Any, str, int]] = [
    (SEND, {"payload": 1}, "user_id", 400),
    (SEND, {"user_id": "", "payload": 1}, "user_id", 400),
    (SEND, {"user_id": 1.5, "payload": 1}, "user_id", 400),
    (SEND, {"user_id": True, "payload": 1}, "user_id", 400),
    (SEND, {"user_id": [1], "payload": 1}, "user_id", 400),
    (SEND, {"user_id": "\ud800", "payload": 1}, "user_id", 400),
    (SEND, {"user_id": "x" * 5000, "payload": 1}, "user_id", 413),
    (SEND, {"user_id": 1}, "payload", 400),
    (SEND, {"user_id": 1, "payload": None}, "payload", 400),
    (SEND, {"user_id": 1, "payload": "\udfff"}, "payload", 400),
    (SEND, {"user_id": 1, "payload": {"\udfff": 1}}, "payload", 400),
    (SEND, {"user_id": 1, "payload": float("nan")}, "payload", 400),
    (SEND, {"user_id": 1, "payload": DEEP}, "payload", 400),
    (SEND, {"user_id": 1, "payload": "x" * 70_000}, "payload", 413),
    (SEND, {"user_id": 1, "title": "T", "message": "M"}, "payload", 400),
    (SEND, {"user_id": 1, "payload": 1, "\ud800": 1}, "", 400),
    (SEND, {}, "user_id", 400),
    (SEND, [], "", 400),
    (SEND, "text", "", 400),
    (SEND, {"title": "T"}, "message", 400),
    (SEND, {"message": "M"}, "title", 400),
    (SEND, {"title": 5, "message": "M"}, "title", 400),
    (SEND, {"title": "T", "message": ["M"]}, "message", 400),
    (SEND, {"title": "T", "message": "x" * 70_000}, "message", 413),
    (SEND, {"title": "T", "message": "M", "data": DEEP}, "data", 400),
    (SEND, {"title": "T", "message": "M", "data": "x" * 70_000}, "data", 413),
    (INTERNAL, {}, "userIds", 400),
    (INTERNAL, {"userIds": [], "payload": {}}, "userIds", 400),
    (INTERNAL, {"userIds": "1", "payload": {}}, "userIds", 400),
    (INTERNAL, {"userIds": {"1": 1}, "payload": {}}, "userIds", 400),
    (INTERNAL, {"userIds": [1, None], "payload": {}}, "userIds[1]", 400),
    (INTERNAL, {"userIds": ["a", ""], "payload": {}}, "userIds[1]", 400),
    (INTERNAL, {"userIds": [{"id": 1}], "payload": {}}, "userIds[0]", 400),
    (INTERNAL, {"userIds": list(range(10_001)), "payload": {}}, "userIds", 413),
    (INTERNAL, {"userIds": [1]}, "payload", 400),
    (INTERNAL, {"userIds": [1], "payload": []}, "payload", 400),
    (INTERNAL, {"userIds": [1], "payload": "text"}, "payload", 400),
    (INTERNAL, {"userIds": [1], "payload": {"a": DEEP}}, "payload", 400),
    (INTERNAL, 5, "", 400),
]


@pytest.mark.parametrize(("path", "fields", "field", "status"), WRONG)
def test_what_is_wrong_is_named(
    server: RunningServer, path: str, fields: Any, field: str, status: int
) -> None:
    """With its field and why, as a problem; for C3 beside it as `{"field": ["why"]}`, too. Nothing is stored."""
    code = "too_large" if status == 413 else "invalid"
    said = problem(post(server, path, fields), status, code, field)
    if path == SEND and field not in ("title", "detail"):
        [why] = said[field or "non_field_errors"]
        assert why and why in said["detail"]


@each_door
@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"user_id":' + b"1" * 5000 + b"}"])
def test_what_is_no_json_is_400(server: RunningServer, path: str, fields: Any, body: bytes) -> None:
    """As the input as a whole."""
    problem(server.request("POST", path, body), 400, "invalid", "")


@each_door
def test_a_body_that_is_too_large_is_413(server: RunningServer, path: str, fields: Any) -> None:
    """Before all of it has come."""
    size = {"Content-Length": str(4 * 1024 * 1024 + 1)}
    problem(server.request("POST", path, None, size), 413, "too_large", "")


PUBLISHED = {
    "/notify": b'{"content": "", "users": []}',
    "/api/v2/notifications": b"[]",
    SEND: json.dumps(C3).encode(),
    INTERNAL: json.dumps(C4).encode(),
}


@pytest.mark.parametrize("path", PUBLISHED)
def test_a_body_that_is_packed_is_415(server: RunningServer, path: str) -> None:
    """And the answer says how it would be taken (RFC 9110 sections 12.5.3 and 15.5.16)."""
    packed = gzip.compress(PUBLISHED[path])
    for coding in ("gzip", "identity, gzip", "br"):
        headers = {"Content-Type": "application/json", "Content-Encoding": coding}
        answer = server.request("POST", path, packed, headers)
        assert "Content-Encoding" in problem(answer, 415, "unsupported_media_type")["detail"]
        assert answer.headers["Accept-Encoding"] == "identity"
    headers["Content-Encoding"] = "Identity"
    assert server.request("POST", path, PUBLISHED[path], headers).status in (200, 202)


def test_where_no_body_comes_none_is_packed(server: RunningServer) -> None:
    """All is in the query, and the header says nothing."""
    headers = {"Content-Encoding": "gzip"}
    path = "/notify?content=&users=[]"
    assert server.request("POST", path, None, headers).status == 200


def test_a_form_that_says_it_is_as_it_is(server: RunningServer) -> None:
    """It is read."""
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Content-Encoding": "identity"}
    assert server.request("POST", "/notify", b"content=", headers).status == 200


@each_door
@pytest.mark.parametrize("digits", [25, 5000], ids=["more than there is", "more than Python reads"])
def test_a_length_beyond_all_numbers_is_413(
    server: RunningServer, path: str, fields: Any, digits: int
) -> None:
    """However many digits it has."""
    problem(server.request("POST", path, None, {"Content-Length": "9" * digits}), 413, "too_large", "")


def test_other_methods_are_405(server: RunningServer) -> None:
    """There is nothing to get here."""
    for path in (SEND, INTERNAL):
        assert server.get(path).status == 405
        assert server.request("PUT", path, b"{}").status == 405


any_text = st.text(st.characters(exclude_categories=()), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=10,
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "user_id": json_values,
        "payload": json_values,
        "userIds": st.lists(json_values, max_size=4) | json_values,
        "title": json_values | any_text,
        "message": json_values | any_text,
        "data": json_values,
    },
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from([SEND, INTERNAL]),
    body=bodies.map(lambda b: json.dumps(b).encode()) | st.binary(max_size=60),
)
def test_no_body_hurts(server: RunningServer, acme: str, path: str, body: bytes) -> None:
    """Taken or refused with a reason: never a 5xx."""
    answer = server.request("POST", path, body, {"Authorization": f"Api-Key {acme}"})
    if answer.status not in (200, 202):
        assert answer.status in (400, 413)
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert "Traceback" not in server.log


async def test_the_inbox_opens_after_whatever_was_taken(server: RunningServer) -> None:
    """What is as deep, as large and as strange as it may be can be read again, on every screen."""
    deep: Any = "x"
    for _ in range(63):
        deep = {"k": deep}
    for payload in (
        deep,
        [10**4000],
        "\u2028\u0000\U0010ffff",
        {"": "", "$ref": 1, "a.b": 2, "__proto__": {}},
        1e308,
    ):
        must(post(server, SEND, {"user_id": "alice", "payload": payload}))
    async with SocketClient(server) as screen:
        shown = [document["data"] for document in await screen.join("alice")]
    assert shown[-5:][0] == deep
    assert shown[-1] == 1e308


# -- the store is away ---------------------------------------------------------------------------------------
@each_door
def test_while_the_store_is_away_it_is_503(
    tmp_path: Path, own_mongod: Mongod, path: str, fields: dict[str, Any]
) -> None:
    """With Retry-After; when it is back, what is sent again goes well."""
    settings = {"NOTIFY_MONGODB_URL": own_mongod.url, "NOTIFY_MONGODB_TIMEOUT_S": "1"}
    with RunningServer(tmp_path, **settings) as server:
        must(post(server, path, fields))
        own_mongod.freeze()
        while (answer := post(server, path, fields)).status in (200, 202):
            pass  # it takes a moment until the last thread of it stands still
        own_mongod.thaw()
        problem(answer, 503, "store_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
        assert "notification_failed_total{" in metrics(server)
        must(post(server, path, fields))


def test_figures_name_the_doors(server: RunningServer) -> None:
    """Each of the three counts what it took."""
    for path, fields in DOORS:
        must(post(server, path, fields))
    for door in ("service", "internal", "broadcast"):
        assert f'notification_published_total{{door="{door}",tenant="default"}}' in metrics(server)
