"""Two nodes as people run them: processes that share a MongoDB, with a user's screens on both, over each backplane."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest

from tests.support.backplanes import LINKS, until
from tests.support.client import SocketClient
from tests.support.client_v2 import client_v2
from tests.support.feeds import SETTINGS, Listener, add_key, hub_path, listening, service_path, user_token
from tests.support.mongod import MongoDatabase
from tests.support.redis_server import RedisServer
from tests.support.running_server import RunningServer


@dataclass
class Nodes:
    here: RunningServer
    there: RunningServer
    redis: RedisServer | None

    async def know_each_other(self) -> None:
        """Both find the way between them well."""
        for node in (self.here, self.there):
            await until(lambda node=node: dependency(node, "backplane")["status"] == "up", "the backplane")  # type: ignore[misc]


def dependency(node: RunningServer, name: str) -> dict[str, Any]:
    found: dict[str, Any] = node.get("/readyz").json()["dependencies"].get(name, {"status": "unknown"})
    return found


@pytest.fixture(params=LINKS)
async def nodes(
    request: pytest.FixtureRequest, tmp_path: Path, mongo_database: MongoDatabase
) -> AsyncIterator[Nodes]:
    redis: RedisServer | None = None
    settings = {
        **SETTINGS,
        "NOTIFY_MONGODB_URL": mongo_database.url,
        "NOTIFY_MONGODB_DB": mongo_database.name,
        "NOTIFY_CLUSTER_BACKPLANE": request.param,
        "NOTIFY_CONNECTIONS_HEARTBEAT_S": "1",
    }
    if request.param == "redis":
        redis = request.getfixturevalue("own_redis_server")
        settings["NOTIFY_CLUSTER_REDIS_URL"] = redis.url()
    servers = []
    for name in ("here", "there"):
        folder = tmp_path / name
        folder.mkdir()
        servers.append(RunningServer(folder, **settings))
    await asyncio.gather(*(asyncio.to_thread(server.start) for server in servers))
    try:
        nodes = Nodes(*servers, redis)
        await nodes.know_each_other()
        yield nodes
    finally:
        for server in servers:
            if server.is_running:
                server.stop()


@pytest.fixture
def user() -> str:
    return f"user-{uuid.uuid4().hex[:8]}"


async def test_a_users_screens_are_in_step_whichever_node_they_are_on(nodes: Nodes, user: str) -> None:
    """New, seen, deleted, and the counts: of both dialects, on both nodes."""
    async with AsyncExitStack() as stack:
        classic = [await stack.enter_async_context(SocketClient(node)) for node in (nodes.here, nodes.there)]
        for client in classic:
            await client.join_by_token(user_token(user))
        v2 = await stack.enter_async_context(client_v2(nodes.there, user))
        nodes.here.must_notify(user, content="one")
        ids = [(await client.next("notification"))[0]["_id"] for client in classic]
        assert ids[0] == ids[1]
        assert [await client.next("count") for client in classic] == [{"unseen": 1}] * 2
        await classic[1].send("seen", {"ids": ids[:1]})
        assert [await client.next("seen") for client in classic] == [ids[:1]] * 2
        assert [await client.next("count") for client in classic] == [{"unseen": 0}] * 2
        await classic[0].send("delete", {"ids": ids[:1]})
        assert [await client.next("delete") for client in classic] == [ids[:1]] * 2
        await v2.push("delete")
        model = [document for document in v2.model.documents.values() if not document["delete"]]
        assert model == []


@pytest.mark.parametrize("nodes", ["redis"], indirect=True)  # the other one's way is its store
async def test_what_one_node_stored_while_the_way_was_cut_is_on_all_screens_when_it_is_back(
    nodes: Nodes, user: str
) -> None:
    """Each node goes on meanwhile, with its own connections and with all publishing."""
    assert nodes.redis is not None
    async with (
        SocketClient(nodes.here) as near,
        SocketClient(nodes.there) as far,
        client_v2(nodes.there, user) as v2,
    ):
        await near.join_by_token(user_token(user))
        await far.join_by_token(user_token(user))
        nodes.redis.kill()
        nodes.here.must_notify(user, content="meanwhile")
        [document] = await near.next("notification")
        await near.send("seen", {"ids": [document["_id"]]})
        await near.next("seen")
        nodes.here.must_notify(user, content="unseen")
        await until(lambda: dependency(nodes.here, "backplane")["status"] == "down", "the trouble being seen")
        assert nodes.here.get("/readyz").status == 200
        nodes.redis.start()
        missed: set[str] = set()
        while "unseen" not in missed:
            missed |= {each["content"] for each in await far.next("notification")}
        assert (await far.next("count"))["unseen"] == 1
        while len(v2.model.documents) < 2:
            await v2.frame()
        assert {each["content"]: each["seen"] for each in v2.model.documents.values()} == {
            "meanwhile": True,
            "unseen": False,
        }


@pytest.mark.parametrize("nodes", ["redis"], indirect=True)
@pytest.mark.parametrize(
    ("path_of", "content"),
    [
        (hub_path, lambda frame: frame["payload"]["content"]),
        (service_path, lambda frame: frame["value"]["content"]),
    ],
    ids=["C2", "C3"],
)
async def test_who_only_listens_is_told_of_what_another_screen_was_sent_while_the_way_was_cut(
    nodes: Nodes, path_of: Callable[[str], str], content: Callable[[Any], str], user: str
) -> None:
    """Though for this user it counts as sent, or as acknowledged."""
    assert nodes.redis is not None

    async def told(screen: Listener, expected: str) -> Any:
        """The frame; in C3, what is not acknowledged may come again before."""
        while content(frame := await screen.frame()) != expected:
            assert path_of is service_path
        return frame

    async with listening(nodes.here, path_of(user)) as near, listening(nodes.there, path_of(user)) as far:
        nodes.here.must_notify(user, content="before")
        await told(near, "before")
        await told(far, "before")
        nodes.redis.kill()
        nodes.here.must_notify(user, content="meanwhile")
        frame = await told(near, "meanwhile")
        if path_of is service_path:
            await near.say({"type": "message_ack", "key": frame["key"]})
        await asyncio.sleep(1)  # that is written down four times a second
        nodes.redis.start()
        await told(far, "meanwhile")


def mails(node: RunningServer) -> list[str]:
    """The subjects of what was mailed."""
    return [
        str(message_from_bytes(path.read_bytes())["Subject"])
        for path in sorted((node.data / "mail").glob("**/*.eml"))
    ]


async def test_who_is_on_another_node_is_not_mailed_and_who_was_on_a_dead_one_is(
    nodes: Nodes, user: str
) -> None:
    """An open connection that gives signs of life swallows the mail wherever it is; one of a dead node does not."""
    to = {"id": user, "email": "user@example.org"}
    absent = {"id": f"{user}-absent", "email": "absent@example.org"}
    async with SocketClient(nodes.there) as far:
        await far.join_by_token(user_token(user))
        await asyncio.sleep(1.5)
        nodes.here.must_notify(to, content="x", title="online", email_send="true")
        await far.next("notification")
        nodes.here.must_notify(absent, content="x", title="absent", email_send="true")
        await until(lambda: "absent" in mails(nodes.here) + mails(nodes.there), "the mail to who is away")
        await asyncio.sleep(4)  # beyond the two heartbeats after which it would be due
        assert "online" not in mails(nodes.here) + mails(nodes.there)
        nodes.there.kill()
        await asyncio.sleep(4)  # as long as a node lives without a sign
        nodes.here.must_notify(to, content="x", title="gone", email_send="true")
        await until(lambda: "gone" in mails(nodes.here), "the mail to who was on the dead node")


async def test_a_broadcast_reaches_the_users_of_all_nodes(nodes: Nodes, user: str) -> None:
    """And those who listen to the tenant, at each node."""
    key = add_key(nodes.here, "default", "all", "publish")
    async with SocketClient(nodes.here) as near, SocketClient(nodes.there) as far:
        await near.join_by_token(user_token(user))
        await far.join_by_token(user_token(f"{user}-2"))
        body = json.dumps({"title": "to all", "message": "hello"}).encode()
        headers = {"Authorization": f"Api-Key {key}", "Content-Type": "application/json"}
        answer = nodes.here.request("POST", "/api/notifications/send/", body, headers)
        assert answer.status == 200, answer.body
        for client in (near, far):
            [document] = await client.next("notification")
            assert document["title"] == "to all"
