"""`POST /api/v2/notifications` against the running server, on both ports."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from server.ingest.batch import GROUP_RECIPIENTS
from tests.support.client import SocketClient
from tests.support.command import STORES, store_settings
from tests.support.feeds import SETTINGS, add_key, add_tenant, metrics
from tests.support.lane import PORTS
from tests.support.processes import wait_until
from tests.support.running_server import Response, RunningServer

ROOT = Path(__file__).resolve().parents[1]

PATH = "/api/v2/notifications"
NDJSON, JSON = "application/x-ndjson", "application/json"
each_form = pytest.mark.parametrize("form", [NDJSON, JSON], ids=["ndjson", "json"])


@pytest.fixture(scope="module", params=PORTS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with request.param(tmp_path_factory.mktemp("batch"), NOTIFY_LIMITS_REQUESTS_PER_KEY="50/h") as running:
        yield running


def send(
    server: RunningServer, items: list[Any], form: str = NDJSON, **headers: str
) -> tuple[Response, list[dict[str, Any]]]:
    """The answer, and what it says of the items."""
    if form == NDJSON:
        body = "".join(f"{json.dumps(item)}\n" for item in items)
    else:
        body = json.dumps(items)
    answer = post(server, body.encode(), form, **headers)
    assert (answer.status, answer.headers["Content-Type"]) == (200, form), answer.body
    said = answer.json() if form == JSON else [json.loads(line) for line in answer.body.splitlines()]
    assert [each["index"] for each in said] == list(range(len(said)))
    return answer, said


def post(server: RunningServer, body: bytes, form: str = NDJSON, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.request("POST", PATH, body, {"Content-Type": form, **named})


def item(*users: str, **fields: Any) -> dict[str, Any]:
    return {"content": "c", "users": [{"id": user} for user in users], **fields}


async def inbox(server: RunningServer, user: str = "alice") -> list[dict[str, Any]]:
    """What the user finds: newest first."""
    async with SocketClient(server) as client:
        await client.join(user)
        return await client.content(limit=100)


@each_form
async def test_each_is_stored_for_its_users(server: RunningServer, form: str) -> None:
    """With all of its fields, and the id by which it is known."""
    mark = uuid4().hex
    fields = {
        "title": f"t {mark}",
        "content": "Grüße",
        "type": "order",
        "url": "u",
        "icon": "i",
        "image": "m",
    }
    _, said = send(server, [item("alice", **fields, data={"n": [1]}), item("alice", "bob", title=mark)], form)
    assert [each["status"] for each in said] == [200, 200]
    first, second = (await inbox(server))[:2][::-1]
    assert {name: first[name] for name in fields} == fields
    assert [first["nid"], second["nid"]] == [each["id"] for each in said]
    assert (first["title"], second["title"]) == (f"t {mark}", mark)


@each_form
async def test_what_is_wrong_holds_up_nothing(server: RunningServer, form: str) -> None:
    """Each is told with its place and its problem; the others are stored, in their order."""
    before = len(await inbox(server))
    wrong: list[Any] = [
        {"users": [{"id": "alice"}]},
        item(),
        item("alice", content=5),
        {"content": "c", "users": [{"id": "alice"}, {"email": "b@example.test"}]},
        item("alice", idempotency_key="ä"),
        item("alice", content="x" * 70_000),
        item("alice", data={"x": "x" * 70_000}),
        [],
        5,
        None,
    ]
    items = [item("alice", title="first"), *wrong, item("alice", title="last")]
    _, said = send(server, items, form)
    assert (said[0]["status"], said[-1]["status"]) == (200, 200)
    problems = [each["problem"] for each in said[1:-1]]
    assert [(each["status"], each["field"]) for each in problems] == [
        (400, "content"),
        (400, "users"),
        (400, "content"),
        (400, "users[1].id"),
        (400, "idempotency_key"),
        (413, "content"),
        (413, "data"),
        (400, ""),
        (400, ""),
        (400, ""),
    ]
    assert all(each["status"] == each["problem"]["status"] for each in said[1:-1])
    assert [each["title"] for each in (await inbox(server))[:2]] == ["last", "first"]
    assert len(await inbox(server)) == before + 2


def test_a_line_that_is_no_json(server: RunningServer) -> None:
    """Is one item; empty lines are none; the last line needs no end."""
    good = json.dumps(item("alice")).encode()
    answer = post(server, b"\n".join([good, b"", b"{", b"  \r", b"\xff", b"[" * 100_000, good]))
    said = [json.loads(line) for line in answer.body.splitlines()]
    assert [each["status"] for each in said] == [200, 400, 400, 400, 200]
    assert said[1]["problem"]["detail"] == "not JSON"


@each_form
def test_a_request_that_comes_again(server: RunningServer, form: str) -> None:
    """Has its effect once, item by item: also where only some of it had come before."""
    user, keys = uuid4().hex, [uuid4().hex for _ in range(4)]
    items = [item(user, idempotency_key=key) for key in keys]
    _, said = send(server, items[:2], form)
    assert all("replayed" not in each for each in said)
    _, again = send(server, [*items, items[3], item(user, content="d", idempotency_key=keys[0])], form)
    assert [each.get("replayed", False) for each in again] == [True, True, False, False, True, False]
    assert [each["id"] for each in again[:2]] == [each["id"] for each in said]
    assert again[4]["id"] == again[3]["id"]
    assert (again[5]["status"], again[5]["problem"]["title"]) == (422, "idempotency_key_reused")


def test_a_key_for_the_whole_request(server: RunningServer) -> None:
    """Would stand for many things: each item has its own."""
    answer = post(server, b"", Idempotency_Key="k")
    assert (answer.status, answer.json()["field"]) == (400, "Idempotency-Key")


@each_form
def test_nothing_in_it(server: RunningServer, form: str) -> None:
    """Is answered with nothing."""
    answer, said = send(server, [], form)
    assert said == []
    assert "x-request-id" in map(str.lower, answer.headers)


@pytest.mark.parametrize(
    ("body", "form", "status"),
    [
        (b"{", JSON, 400),
        (b"{}", JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b"[" + b"0," * 20_000 + b"0]", JSON, 413),
        (b"0\n" * 20_001, NDJSON, 413),
        (b"x" * (4 * 1024 * 1024 + 1), NDJSON, 413),
    ],
    ids=["no-json", "no-array", "deep", "many-items", "many-lines", "large"],
)
def test_a_body_that_is_refused_as_a_whole(
    server: RunningServer, body: bytes, form: str, status: int
) -> None:
    """One problem, as of the other doors."""
    answer = post(server, body, form)
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")


@pytest.mark.parametrize(
    ("body", "form"),
    [
        (b"0\n" * 20_000, NDJSON),
        (b"0\r\n\n \n" * 20_000 + b"\n" * 100_000, NDJSON),
        (b"[" + b"0," * 19_999 + b"0]", JSON),
    ],
    ids=["lines", "empty-lines-between", "array"],
)
def test_as_many_items_as_there_may_be(server: RunningServer, body: bytes, form: str) -> None:
    """The end of the last line begins no other item, and an empty line is none."""
    answer = post(server, body, form)
    assert answer.status == 200
    assert answer.body.count(b'"index"') == 20_000


def test_each_counts_as_a_request(server: RunningServer) -> None:
    """Of its key: what is over the limit is refused, and what came before is stored."""
    key = add_tenant(server, f"t{uuid4().hex[:8]}")
    answer, said = send(server, [item("alice") for _ in range(60)], Authorization=f"Api-Key {key}")
    stored = [each["status"] for each in said].count(200)
    assert 45 <= stored <= 50  # making the key took some
    assert [each["status"] for each in said] == [200] * stored + [429] * (60 - stored)
    fields = {name.lower(): value for name, value in answer.headers.items()}
    assert fields["ratelimit-policy"] == '"requests_per_key";q=50;w=3600'
    assert post(server, b"", Authorization=f"Api-Key {key}").status == 429


def test_what_is_refused_is_counted(server: RunningServer) -> None:
    """Each item, by why, and as of its tenant."""
    tenant = f"t{uuid4().hex[:8]}"
    key = add_tenant(server, tenant)
    wrong = [item(), item("alice", content="x" * 70_000), {"content": 5}]
    send(server, [*wrong, item("alice")], Authorization=f"Api-Key {key}")
    for code, count in (("invalid", 2), ("too_large", 1)):
        labels = f'code="{code}",door="batch",tenant="{tenant}"'
        line = f"notification_requests_refused_total{{{labels}}} {count}.0"
        wait_until(lambda line=line: line in metrics(server), line)


def test_who_may_not_publish(server: RunningServer) -> None:
    """Is refused as a whole, whatever is in it."""
    listener = add_key(server, add_tenant_named(server), "listener", "listen")
    for headers, status in (
        ({"Authorization": "Api-Key wrong"}, 403),
        ({"Authorization": f"Api-Key {listener}"}, 403),
        ({"Via": "1.1 x"}, 401),
    ):
        answer = post(server, b"{", **headers)
        assert answer.status == status
        assert answer.headers["Content-Type"] == "application/problem+json"


def test_who_may_not_publish_any_more(tmp_path: Path) -> None:
    """Of a batch under way, what is not being stored is refused."""
    (tmp_path / "sitecustomize.py").write_text(HELD)
    settings = {**SETTINGS, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    with RunningServer(tmp_path, **settings) as server, ThreadPoolExecutor(1) as executor:
        key = add_key(server, "default", "ci", "publish")
        users = [f"user-{number}" for number in range(GROUP_RECIPIENTS)]
        credential = {"Authorization": f"Api-Key {key}"}
        sent = executor.submit(send, server, [item(*users) for _ in range(3)], **credential)
        try:
            wait_until(lambda: "stores a group" in server.log, "the first group")
            server.must_run("key", "revoke", "default", "ci")
            wait_until(lambda: post(server, b"", **credential).status == 403, "the key being worthless")
        finally:
            (tmp_path / "go on").touch()
        _, said = sent.result()
    assert [each["status"] for each in said] == [200, 403, 403]
    assert [each["problem"]["title"] for each in said[1:]] == ["bad_credentials"] * 2


HELD = """
import asyncio, pathlib
from server.ingest.batch import BatchDoor
notify = BatchDoor.notify
async def held(self, publications):
    print("stores a group", flush=True)
    while not pathlib.Path("go on").exists():
        await asyncio.sleep(0.01)
    return await notify(self, publications)
BatchDoor.notify = held
"""


def add_tenant_named(server: RunningServer) -> str:
    name = f"t{uuid4().hex[:8]}"
    add_tenant(server, name)
    return name


async def test_a_push_for_each(server: RunningServer) -> None:
    """Who is connected sees them at once, in their order."""
    async with SocketClient(server) as client:
        await client.join("alice")
        send(server, [item("alice", title=str(number)) for number in range(300)])
        pushed: list[str] = []
        while len(pushed) < 300:
            pushed += [each["title"] for each in await client.next("notification")]
        assert pushed == [str(number) for number in range(300)]


@pytest.mark.parametrize("kind", STORES)
def test_a_good_answer_is_durable(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    """After SIGKILL at once each has its document, once."""
    items = [item("alice", idempotency_key=f"k{number}") for number in range(500)]
    with store_settings(kind, request) as settings, RunningServer(tmp_path, **SETTINGS, **settings) as server:
        _, said = send(server, items)
        server.kill()
        # A store that is busy may leave some without a good answer; of those nothing is promised.
        stored = {each["index"]: each["id"] for each in said if each["status"] == 200}
        assert stored
        server.start()
        _, again = send(server, [items[index] for index in stored])
        assert all(each["replayed"] for each in again)
        assert [each["id"] for each in again] == list(stored.values())
        assert f'notification_replayed_total{{door="batch",tenant="default"}} {len(stored)}.0' in metrics(
            server
        )
