"""The same request has its effect once at every door for backends: the header and the field, what a repeat is answered,
and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest

from tests.support.client import SocketClient
from tests.support.command import STORES, store_settings
from tests.support.feeds import SETTINGS, user_token
from tests.support.lane import PORTS
from tests.support.mongod import Mongod
from tests.support.processes import wait_until
from tests.support.running_server import Response, RunningServer

REPLAYED = "Idempotent-Replayed"


@pytest.fixture(scope="module", params=PORTS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with request.param(tmp_path_factory.mktemp("once"), **SETTINGS) as running:
        yield running


@pytest.fixture
def key() -> str:
    return str(uuid4())


@pytest.fixture
def user() -> str:
    return f"user-{uuid4().hex}"


Encode = Callable[[dict[str, Any]], tuple[str, bytes, str]]
"""What is sent for these fields: what follows the path, the body, and its type."""


def as_json(fields: dict[str, Any]) -> tuple[str, bytes, str]:
    return "", json.dumps(fields).encode(), "application/json"


def _texts(fields: dict[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}


def as_form(fields: dict[str, Any]) -> tuple[str, bytes, str]:
    return "", urlencode(_texts(fields)).encode(), "application/x-www-form-urlencoded"


def as_query(fields: dict[str, Any]) -> tuple[str, bytes, str]:
    return f"?{urlencode(_texts(fields))}", b"", "application/x-www-form-urlencoded"


def as_multipart(fields: dict[str, Any]) -> tuple[str, bytes, str]:
    """With another boundary each time, as clients do it."""
    boundary = uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in _texts(fields).items()
    ]
    return "", f"{''.join(parts)}--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


@dataclass(frozen=True)
class Door:
    path: str
    fields: Callable[[str, str], dict[str, Any]]
    """For this user, with this text."""
    status: int = 200
    encode: Encode = as_json
    content: str = "content"
    """The field whose text is the notification's content."""

    def send(
        self, server: RunningServer, user: str, text: str = "text", key: str = "", **more: Any
    ) -> Response:
        """`key`: in the header; `more`: fields beside."""
        tail, body, media_type = self.encode(self.fields(user, text) | more)
        headers = {"Content-Type": media_type} | ({"Idempotency-Key": key} if key else {})
        return server.request("POST", self.path + tail, body, headers)


def _notify(user: str, text: str) -> dict[str, Any]:
    return {"content": text, "users": [{"id": user}]}


DOORS = {
    "C1-json": Door("/notify", _notify),
    "C1-form": Door("/notify", _notify, encode=as_form),
    "C1-multipart": Door("/notify", _notify, encode=as_multipart),
    "C1-query": Door("/notify", _notify, encode=as_query),
    "C3": Door(
        "/api/notifications/send/", lambda user, text: {"user_id": user, "payload": {"content": text}}
    ),
    "C4": Door(
        "/api/realtime/internal/notify",
        lambda user, text: {"userIds": [user], "payload": {"content": text}},
        202,
    ),
    "C5": Door("/api/notifications/send/", lambda user, text: {"title": f"for {user}", "message": text}),
}

each_door = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)


async def inbox(server: RunningServer, user: str, text: str) -> list[dict[str, Any]]:
    """The documents with this text that the user finds."""
    async with SocketClient(server) as screen:
        await screen.join_by_token(user_token(user))
        return [document for document in await screen.content(limit=100) if document["content"] == text]


def must(answer: Response, door: Door) -> Response:
    assert answer.status == door.status, (answer.status, answer.body)
    return answer


def assert_refused(answer: Response, status: int, code: str, field: str | None = None) -> None:
    said = answer.json()
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (answer.status, said["title"], said.get("field")) == (status, code, field)


@each_door
async def test_a_repeat(server: RunningServer, door: Door, key: str, user: str) -> None:
    """Is answered as at first, with a header that says so, by header or field; the user has it once."""
    text = uuid4().hex
    await inbox(server, user, text)  # so that the tenant knows the user
    first = must(door.send(server, user, text, key), door)
    assert REPLAYED not in first.headers
    for again in (
        door.send(server, user, text, key),
        door.send(server, user, text, f'"{key}"'),
        door.send(server, user, text, idempotency_key=key),
        door.send(server, user, text, key, idempotency_key=key),
    ):
        assert must(again, door).body == first.body
        assert again.headers[REPLAYED] == "true"
    documents = await inbox(server, user, text)
    assert len(documents) == 1
    assert key not in json.dumps(documents)
    assert REPLAYED not in must(door.send(server, user, text), door).headers
    assert len(await inbox(server, user, text)) == 2


@each_door
async def test_the_same_key_for_another_request(
    server: RunningServer, door: Door, key: str, user: str
) -> None:
    """422, and nothing is stored."""
    text = f"another {key}"
    must(door.send(server, user, "text", key), door)
    assert_refused(door.send(server, user, text, key), 422, "idempotency_key_reused")
    assert await inbox(server, user, text) == []


@each_door
def test_what_is_no_key(server: RunningServer, door: Door, key: str, user: str) -> None:
    """400, and it names where the key stands."""
    for bad in ('"not closed', "a b", "x" * 256):
        assert_refused(door.send(server, user, key=bad), 400, "invalid", "Idempotency-Key")
    for bad in ("", "a b", "é", "x" * 256):
        answer = door.send(server, user, idempotency_key=bad)
        # Tornado leaves out empty values of forms.
        if bad or door.encode is as_json:
            assert_refused(answer, 400, "invalid", "idempotency_key")
    assert_refused(door.send(server, user, key=key, idempotency_key="b"), 400, "invalid", "idempotency_key")


@each_door
def test_only_what_went_well_is_remembered(server: RunningServer, door: Door, key: str, user: str) -> None:
    """After a 400 or a 413 the key is free."""
    tail, body, media_type = door.encode({"idempotency_key": key, "payload": None})
    assert server.request("POST", door.path + tail, body, {"Content-Type": media_type}).status == 400
    if door.encode is not as_query:
        assert door.send(server, user, "x" * 70_000, key).status == 413
    assert REPLAYED not in must(door.send(server, user, key=key), door).headers


@each_door
async def test_many_at_the_same_moment(server: RunningServer, door: Door, key: str, user: str) -> None:
    """One effect and one answer, which one of them gets first."""
    text = f"at once {key}"
    await inbox(server, user, text)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: must(door.send(server, user, text, key), door), range(16)))
    assert len({answer.body for answer in answers}) == 1
    assert sum(REPLAYED not in answer.headers for answer in answers) == 1
    assert len(await inbox(server, user, text)) == 1


def test_a_key_is_the_same_at_every_door(server: RunningServer, key: str, user: str) -> None:
    """In whatever form the same notification comes; what comes by another door is another one."""
    forms = [door for name, door in DOORS.items() if name.startswith("C1")]
    answers = [must(door.send(server, user, key=key), door) for door in forms]
    assert [REPLAYED in answer.headers for answer in answers] == [False, True, True, True]
    assert_refused(DOORS["C3"].send(server, user, key=key), 422, "idempotency_key_reused")


async def test_a_repeat_is_pushed_to_nobody(server: RunningServer, key: str, user: str) -> None:
    """And mailed to nobody again."""
    door = DOORS["C1-json"]
    mail = {"users": [{"id": user, "email": f"{user}@x.test"}], "email_force": True}
    async with SocketClient(server) as screen:
        await screen.join_by_token(user_token(user))
        for _ in range(3):
            must(door.send(server, user, key, key, **mail), door)
        must(door.send(server, user, "the last"), door)
        contents = [document["content"] for document in await screen.next("notification")]
        while contents[-1] != "the last":
            contents += [document["content"] for document in await screen.next("notification")]
    assert contents == [key, "the last"]
    folder = server.data / "mail"

    def mails() -> list[bytes]:
        return [found for path in folder.glob("*.eml") if user.encode() in (found := path.read_bytes())]

    wait_until(lambda: len(mails()) > 0, "the mail")
    must(door.send(server, user, key, key, **mail), door)
    assert len(mails()) == 1


def test_nobody_has_a_key_for_nobody(server: RunningServer, key: str) -> None:
    """A notification without users stores nothing, and claims nothing."""
    door = DOORS["C1-json"]
    for _ in range(2):
        answer = must(door.send(server, "nobody", key=key, users=[]), door)
        assert REPLAYED not in answer.headers
    assert REPLAYED not in must(door.send(server, "somebody", key=key), door).headers


@pytest.mark.parametrize("kind", STORES)
async def test_a_server_that_is_killed_in_the_middle(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """Callers send again whatever was not answered: all users have each notification once."""
    users = ["ann", "bob", "cy", "dan"]
    texts = [f"text {number}" for number in range(60)]
    with store_settings(kind, request) as settings:
        server = RunningServer(tmp_path, **SETTINGS, **settings)
        with server:
            for _ in range(3):
                with ThreadPoolExecutor(8) as pool:
                    sending = [pool.submit(send_to_all, server, users, text) for text in texts]
                    wait(sending, return_when=FIRST_COMPLETED)
                    server.kill()
                server.start()
            with ThreadPoolExecutor(8) as pool:
                assert all(pool.map(lambda text: send_to_all(server, users, text), texts))
            for user in users:
                async with SocketClient(server) as screen:
                    await screen.join_by_token(user_token(user))
                    found = [document["content"] for document in await screen.content(limit=100)]
                assert sorted(found) == sorted(texts)


def send_to_all(server: RunningServer, users: list[str], text: str) -> bool:
    """Whether that was answered well."""
    more = {"users": [{"id": user} for user in users]}
    try:
        return (
            DOORS["C1-json"].send(server, "", text, f"key-of-{text}".replace(" ", "-"), **more).status == 200
        )
    except (OSError, HTTPException):
        return False


@pytest.mark.parametrize("name", ["C1-json", "C4"])
def test_after_a_503_the_same_request_ends_well(
    tmp_path_factory: pytest.TempPathFactory, own_mongod: Mongod, name: str, key: str
) -> None:
    """However often it had to be sent, each user has it once."""
    door, users = DOORS[name], ["ann", "bob", "cy"]
    more: dict[str, Any] = {"users": [{"id": user} for user in users]} if name == "C1-json" else {}
    more |= {"userIds": users} if name == "C4" else {}
    settings = {"NOTIFY_MONGODB_URL": own_mongod.url, "NOTIFY_MONGODB_TIMEOUT_S": "1"}
    with RunningServer(tmp_path_factory.mktemp("away"), **settings) as server:
        server.must_notify(*users)
        for number in range(3):
            text, once = f"text {number}", f"{key}-{number}"
            own_mongod.freeze()
            # It takes a moment until the last thread of it stands still.
            while (answer := door.send(server, "", text, once, **more)).status in (200, 202):
                pass
            assert answer.status in (409, 503)
            assert int(answer.headers["Retry-After"]) >= 1
            own_mongod.thaw()
            while (answer := door.send(server, "", text, once, **more)).status != door.status:
                assert answer.status in (409, 503)
        with own_mongod.client() as client:
            [found] = [
                database
                for database in client.list_database_names()
                if "notifications" in client[database].list_collection_names()
            ]
            documents = client[found]["notifications"]
            wait_until(
                lambda: documents.count_documents({"content": {"$regex": "^text"}}) == 9, "all documents"
            )
            pairs = [
                (each["_userId"], each["content"])
                for each in documents.find({"content": {"$regex": "^text"}})
            ]
            assert sorted(set(pairs)) == sorted(pairs)
