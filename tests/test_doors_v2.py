"""Dialect 2 over each of its doors, on a running server: `/ws/v2`, SockJS, Server-Sent Events, and REST."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from server.auth import Identity
from server.transports.inbox import InboxHandler
from tests.support.backends import add_key, known
from tests.support.client_v2 import PATHS, client_v2
from tests.support.core import ALICE, open_core
from tests.support.event_streams import EventStream, event_stream
from tests.support.feeds import SETTINGS, listening, refused, user_token
from tests.support.processes import wait_until
from tests.support.recording import ELSEWHERE
from tests.support.running_server import Response, RunningServer

each_path = pytest.mark.parametrize("path", PATHS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("v2"), **SETTINGS) as running:
        yield running


@pytest.fixture
def user() -> str:
    return f"user-{uuid4().hex}"


def inbox(
    server: RunningServer,
    method: str,
    user: str | None,
    query: str = "",
    fields: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A request to `/api/v2/inbox`."""
    sent = dict(headers or {})
    if user is not None:
        sent["Authorization"] = f"Bearer {user_token(user)}"
    body = None if fields is None else json.dumps(fields).encode()
    return server.request(method, f"/api/v2/inbox{query}", body, sent)


def must(answer: Response) -> Any:
    assert answer.status == 200, answer
    return answer.json()


def ids(documents: list[Any]) -> list[str]:
    return [each["_id"] for each in documents]


# -- WebSocket -----------------------------------------------------------------------------------------------


@each_path
async def test_over_a_websocket(server: RunningServer, user: str, path: str) -> None:
    """Join, pages, pushes, changes and counts."""
    server.must_notify(user, content="before", type="order")
    async with client_v2(server, user, path=path) as client:
        assert client.model.counts == {"unseen": 1, "total": 1, "types": {"order": {"unseen": 1, "total": 1}}}
        server.must_notify(user, content="after: ü")
        pushed = await client.push("notification")
        assert pushed["content"] == "after: ü"
        assert (await client.push("counts"))["unseen"] == 2
        changed = await client.ask("seen", {"ids": [pushed["_id"]]})
        assert changed["ids"] == [pushed["_id"]]
        assert (await client.push("counts"))["unseen"] == 1
        before = client.model.inbox
        await client.sync()
        assert client.model.inbox == before
        assert sorted(before.values()) == [False, True]


async def test_the_door_speaks_nothing_but_dialect_2(server: RunningServer) -> None:
    """Whatever is said is answered in it."""
    async with client_v2(server) as client:
        assert (await client.refusal("join", {"login": "alice", "password": "alice", "v": 1}))[
            "field"
        ] == "data.v"
        assert (await client.refusal("counts"))["code"] == "not_joined"
        assert (await client.ask("join", {"login": "alice", "password": "alice"}))["user"] == "alice"


async def test_pages_of_other_origins_are_refused_where_the_configuration_says_so(tmp_path: Path) -> None:
    """Before the upgrade."""
    with RunningServer(tmp_path, NOTIFY_APPLICATION_ORIGINS="https://a.example") as server:
        assert (await refused(server, "/ws/v2", Origin="https://b.example"))[0] == 403
        async with listening(server, "/ws/v2", Origin="https://a.example"):
            pass


async def test_both_dialects_of_one_user_see_the_same(server: RunningServer, user: str) -> None:
    """What one changes the other hears of."""
    server.must_notify(user)
    async with client_v2(server, user) as new, listening(server, "/notification/websocket") as old:
        await old.say({"name": "join", "data": {"token": user_token(user)}})
        [document] = json.loads((await old.frame())["data"])
        await old.frame()
        await old.say({"name": "seen", "data": [document["_id"]]})
        assert (await new.push("seen"))["ids"] == [document["_id"]]
        await new.ask("delete", {"ids": [document["_id"]]})
        names = []
        while "delete" not in names:
            names.append((await old.frame())["name"])


@each_path
async def test_who_was_away_catches_up(server: RunningServer, user: str, path: str) -> None:
    """With exactly the state of the inbox, tombstones included."""
    for number in range(3):
        server.must_notify(user, content=str(number))
    async with client_v2(server, user, path=path) as first:
        model = first.model
    one, two, three = ids(must(inbox(server, "GET", user))["documents"])
    must(inbox(server, "DELETE", user, fields={"ids": [one]}))
    must(inbox(server, "PATCH", user, fields={"ids": [two], "seen": True}))
    server.must_notify(user, content="new")
    async with client_v2(server, user, path=path, model=model):
        [new, *_] = ids(must(inbox(server, "GET", user))["documents"])
        assert model.inbox == {two: True, three: False, new: False}


async def test_a_ticket_lets_in_again_until_the_user_is_signed_out(server: RunningServer, user: str) -> None:
    """It ends with what it stands for."""
    key = server.must_run("key", "add", "default", uuid4().hex[:8], "--scope", "admin")["secret"]
    async with client_v2(server, user, iat=time.time() - 1) as client:
        ticket = client.ticket
        assert ticket is not None
        async with client_v2(server) as other:
            assert (await other.join(ticket=ticket))["user"] == user
        headers = {"Authorization": f"Api-Key {key}"}
        wait_until(
            lambda: server.request("POST", f"/api/v2/users/{user}/sign-out", b"", headers).status == 204,
            "the server knowing the key",
        )
        assert (await client.closed())[0] == 3501
    async with client_v2(server) as other:
        assert (await other.refusal("join", {"ticket": ticket, "v": 2}))["code"] == "bad_credentials"


async def test_a_ticket_ends_with_the_token_it_was_got_by(server: RunningServer, user: str) -> None:
    """Also the connection that came by it."""
    async with client_v2(server, user, lifetime_s=3) as client:
        ticket = client.ticket
        async with client_v2(server) as other:
            await other.join(ticket=ticket)
            assert (await other.closed())[0] == 3005
    async with client_v2(server) as other:
        assert (await other.refusal("join", {"ticket": ticket, "v": 2}))["code"] == "token_expired"


async def test_a_server_that_ends_says_when_to_come_back(tmp_path: Path, user: str) -> None:
    """Not to all the same; and then it closes with 1001. Afterwards all is as it was."""
    with RunningServer(tmp_path, **SETTINGS) as server:
        server.must_notify(user)
        async with (
            client_v2(server, user) as one,
            client_v2(server, user, path=PATHS[1]) as two,
            event_stream(server, user, path="/events?v=2") as stream,
        ):
            await _joined(stream)
            await asyncio.to_thread(server.stop)
            delays = []
            for client in (one, two):
                delays.append((await client.push("bye"))["retry_ms"])
                assert await client.closed() == (1001, "going away")
            while (event := await stream.event()) is not None and event.data.get("name") != "bye":
                pass
            assert event is not None
            assert stream.retry_ms == event.data["data"]["retry_ms"]
            delays.append(stream.retry_ms)
            assert all(500 <= each <= 31_000 for each in delays)
            assert len(set(delays)) > 1
        server.start()
        async with client_v2(server, user, model=one.model) as again:
            assert list(again.model.inbox.values()) == [False]


# -- Server-Sent Events --------------------------------------------------------------------------------------


async def _joined(stream: EventStream) -> dict[str, Any]:
    event = await stream.next("message")
    assert event.data["name"] == "joined"
    assert event.id == event.data["data"]["since"]
    joined: dict[str, Any] = event.data["data"]
    return joined


async def test_over_server_sent_events(server: RunningServer, user: str) -> None:
    """The frames of a socket; those that one may go on from have that as their id, pushes have none."""
    server.must_notify(user, content="before")
    async with event_stream(server, user, path="/events?v=2") as stream:
        joined = await _joined(stream)
        assert (joined["user"], joined["counts"]["unseen"], joined["ticket"]) == (user, 1, None)
        server.must_notify(user, content="after")
        event = await stream.next("message")
        assert (event.data["name"], event.data["data"]["content"], event.id) == (
            "notification",
            "after",
            None,
        )


@pytest.mark.parametrize("way", ["query", "header"])
async def test_a_stream_goes_on_from_where_it_was(server: RunningServer, user: str, way: str) -> None:
    """By the query, as a page does; or by the header, as a browser does by itself, which counts more."""
    async with event_stream(server, user, path="/events?v=2") as stream:
        since = (await _joined(stream))["since"]
    for number in range(3):
        server.must_notify(user, content=str(number))
    path = f"/events?v=2&since={since if way == 'query' else 'x'}"
    async with event_stream(server, user, path=path, last_id=since if way == "header" else None) as stream:
        joined, synced = await stream.next("message"), await stream.next("message")
        assert (joined.data["data"]["since"], joined.data["data"]["more"], joined.id) == (None, True, None)
        assert [each["content"] for each in synced.data["data"]["documents"]] == ["0", "1", "2"]
        assert synced.id == synced.data["data"]["upto"]
    async with event_stream(server, user, path="/events?v=2", last_id=synced.id) as stream:
        await stream.next("message")
        assert (await stream.next("message")).data["data"]["documents"] == []


async def test_a_stream_of_another_version_is_refused(server: RunningServer, user: str) -> None:
    """By the field."""
    async with event_stream(server, user, path="/events?v=3") as stream:
        assert stream.status == 400


# -- REST ----------------------------------------------------------------------------------------------------


async def test_pages_over_http(server: RunningServer, user: str) -> None:
    """Newest first, with the counts and where to go on from; then from before the last one."""
    for number in range(5):
        server.must_notify(user, content=str(number), type="odd" if number % 2 else "even")
    page = must(inbox(server, "GET", user, "?limit=2"))
    assert [each["content"] for each in page["documents"]] == ["4", "3"]
    assert (page["older"], page["counts"]["types"]["odd"]) == (True, {"unseen": 2, "total": 2})
    rest = must(inbox(server, "GET", user, f"?before={ids(page['documents'])[-1]}"))
    assert ([each["content"] for each in rest["documents"]], rest["older"]) == (["2", "1", "0"], False)
    odd = must(inbox(server, "GET", user, "?type=odd&seen=false"))
    assert [each["content"] for each in odd["documents"]] == ["3", "1"]
    assert must(inbox(server, "GET", user, "?seen=true"))["documents"] == []


async def test_what_changed_over_http(server: RunningServer, user: str) -> None:
    """In chunks, each of which says where to go on."""
    since = must(inbox(server, "GET", user))["since"]
    for number in range(5):
        server.must_notify(user, content=str(number))
    found, more = [], True
    while more:
        chunk = must(inbox(server, "GET", user, f"?since={since}&limit=2"))
        found += [each["content"] for each in chunk["documents"]]
        since, more = chunk["upto"], chunk["more"]
    assert found == ["0", "1", "2", "3", "4"]
    assert must(inbox(server, "GET", user, "?since=nonsense"))["reset"]


async def test_changes_over_http(server: RunningServer, user: str) -> None:
    """Each is answered with what it really changed, and told to every screen."""
    server.must_notify(user)
    async with client_v2(server, user) as client:
        [id_] = client.model.inbox
        for method, fields, told in (
            ("PATCH", {"seen": True}, "seen"),
            ("PATCH", {"seen": False}, "unseen"),
            ("DELETE", {}, "delete"),
            ("PATCH", {"deleted": False}, "restored"),
            ("PATCH", {"deleted": True}, "delete"),
        ):
            answer = must(inbox(server, method, user, fields={"ids": [id_, "0" * 24], **fields}))
            assert answer == {"ids": [id_], "rev": (await client.push(told))["rev"]}
        nothing = must(inbox(server, "DELETE", user, fields={"ids": [id_]}))
        assert nothing == {"ids": [], "rev": None}


async def test_all_become_seen_over_http(server: RunningServer, user: str) -> None:
    """Up to a rev."""
    for _ in range(3):
        server.must_notify(user)
    newest, *_ = must(inbox(server, "GET", user))["documents"]
    server.must_notify(user)
    answer = must(inbox(server, "PATCH", user, fields={"all": True, "upto": newest["rev"], "seen": True}))
    assert (answer["changed"], answer["upto"]) == (3, newest["rev"])
    assert must(inbox(server, "GET", user))["counts"]["unseen"] == 1


async def test_who_polls_is_told_when_nothing_changed(server: RunningServer, user: str) -> None:
    """For as long as nothing does, and only who was answered it."""
    server.must_notify(user)
    first = inbox(server, "GET", user)
    known = {"If-None-Match": first.headers["Etag"]}
    for _ in range(2):
        again = inbox(server, "GET", user, headers=known)
        assert (again.status, again.body, again.headers["Etag"]) == (304, b"", first.headers["Etag"])
    assert inbox(server, "GET", f"{user}-other", headers=known).status == 200
    [document] = must(first)["documents"]
    must(inbox(server, "PATCH", user, fields={"ids": [document["_id"]], "seen": True}))
    changed = inbox(server, "GET", user, headers=known)
    assert (changed.status, changed.json()["documents"][0]["seen"]) == (200, True)
    for nonsense in ("*", '"x"', 'W/"0123456789abcdef.x"', '"', "W/" * 1000):
        assert inbox(server, "GET", user, headers={"If-None-Match": nonsense}).status == 200


async def test_a_page_is_as_of_before_it_was_read(tmp_path: Path) -> None:
    """What is stored while it is read comes with the next poll."""

    class Alices(InboxHandler):
        async def _is_let_in(self) -> bool:
            self.identity = Identity(*ALICE)
            return True

    async with open_core(tmp_path) as core:
        doors = SimpleNamespace(services=core.feeds, identify=lambda *_: ELSEWHERE, connections=None)
        http = HTTPServer(Application([("/", Alices, {"doors": doors})]))
        sockets = bind_sockets(0, "127.0.0.1")
        http.add_sockets(sockets)
        url, client = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/", AsyncHTTPClient()
        gate = core.store.hold("newest")
        asking = asyncio.ensure_future(client.fetch(url))
        await gate.reached()
        [late] = await core.fill("alice", 1)
        gate.open()
        page = json.loads((await asking).body)
        assert page["documents"] == []
        changes = json.loads((await client.fetch(f"{url}?since={page['since']}")).body)
        assert ids(changes["documents"]) == [late.id]
        http.stop()
        await http.close_all_connections()


@pytest.mark.parametrize(
    ("method", "query", "fields", "field"),
    [
        ("GET", "?limit=0", None, "limit"),
        ("GET", "?limit=x", None, "limit"),
        ("GET", "?before=x", None, "before"),
        ("GET", "?seen=1", None, "seen"),
        ("GET", "?type=%ff", None, "type"),
        ("PATCH", "", {}, None),
        ("PATCH", "", {"ids": [], "seen": True, "deleted": False}, None),
        ("PATCH", "", {"ids": [], "seen": 1}, "seen"),
        ("PATCH", "", {"ids": "x", "seen": True}, "ids"),
        ("PATCH", "", {"ids": [1], "seen": True}, "ids[0]"),
        ("PATCH", "", {"all": True, "seen": False}, "all"),
        ("PATCH", "", {"all": True, "seen": True, "upto": "x"}, "upto"),
        ("PATCH", "", [], None),
        ("DELETE", "", None, None),
        ("DELETE", "", {"ids": [f"{number:024x}" for number in range(501)]}, "ids"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_request_that_is_wrong_is_answered_with_its_field(
    server: RunningServer, user: str, method: str, query: str, fields: Any, field: str | None
) -> None:
    """As problem+json."""
    answer = inbox(server, method, user, query, fields)
    assert answer.status in (400, 413)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json().get("field") == field


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_a_body_that_is_too_large_is_answered(server: RunningServer, user: str, method: str) -> None:
    """413, as a problem, and not with the end of the connection; but only to who has a token."""
    fields = {"ids": [f"{number:024x}" for number in range(5000)]}
    answer = inbox(server, method, user, fields=fields)
    assert (answer.status, answer.headers["Content-Type"]) == (413, "application/problem+json")
    assert answer.json()["title"] == "too_large"
    body = json.dumps(fields).encode()
    assert server.request(method, "/api/v2/inbox", body).status == 401
    assert inbox(server, "GET", user, fields=fields).status == 200


async def test_long_answers_count_as_several_commands(tmp_path: Path, user: str) -> None:
    """As on a socket: each 16 KiB of them are one more."""
    with RunningServer(tmp_path, NOTIFY_LIMITS_COMMANDS_PER_USER="10/h", **SETTINGS) as server:
        server.must_notify(user, content="x" * 60_000)
        answers = [inbox(server, "GET", user) for _ in range(4)]
        assert [each.status for each in answers] == [200, 200, 200, 429]
        other = [inbox(server, "GET", f"{user}-2") for _ in range(4)]
        assert [each.status for each in other] == [200] * 4


async def test_who_is_signed_out_while_waiting_is_not_answered(tmp_path: Path, user: str) -> None:
    """Requests of who asks too often wait for their turn: what is revoked meanwhile is not carried out."""
    with RunningServer(tmp_path, NOTIFY_LIMITS_COMMANDS_PER_USER="2/9s", **SETTINGS) as server:
        backend = known(add_key(server, "default", "admin", "admin", "listen"))
        assert [inbox(server, "GET", user).status for _ in range(2)] == [200] * 2
        waiting = asyncio.create_task(asyncio.to_thread(inbox, server, "GET", user))
        throttled = 'notification_throttled_total{limit="commands_per_user"} 1.0'
        figures = {"Accept": "text/plain"}
        await asyncio.to_thread(
            wait_until,
            lambda: throttled in server.request("GET", "/metrics", None, figures).body.decode(),
            "its waiting",
        )
        assert backend.sign_out(user).status == 204
        assert (await waiting).status == 401


async def test_without_a_token_there_is_no_inbox(server: RunningServer) -> None:
    """Nor with a wrong one; nor by another method."""
    assert inbox(server, "GET", None).status == 401
    assert inbox(server, "GET", None, headers={"Authorization": "Bearer x"}).status == 401
    answer = inbox(server, "POST", "alice", fields={})
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, DELETE, PATCH, OPTIONS")


async def test_pages_of_other_origins_may_ask(server: RunningServer, user: str) -> None:
    """And read the ETag."""
    origin = {"Origin": "https://page.example"}
    preflight = inbox(server, "OPTIONS", None, headers=origin)
    assert preflight.status == 204
    assert "PATCH" in preflight.headers["Access-Control-Allow-Methods"]
    assert "If-None-Match" in preflight.headers["Access-Control-Allow-Headers"]
    answer = inbox(server, "GET", user, headers=origin)
    assert answer.headers["Access-Control-Allow-Origin"] == "https://page.example"
    assert "ETag" in answer.headers["Access-Control-Expose-Headers"]
